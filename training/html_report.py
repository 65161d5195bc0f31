"""One HTML file that shows an evaluation: tables, pictures, and the worst recordings to listen to."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import soundfile

from asr import SAMPLE_RATE, AudioError, OptionError
from training.breakdown import break_down
from training.manifest import load_audio
from training.metrics import normalize
from training.report import EvaluatedUtterance, table_cells

N_CLIPS = 20  # recordings to listen to: those with the most errors
MAX_ROWS = 40  # of a table
_TEMPLATE = Path(__file__).parent / "report.html.j2"


@dataclass(frozen=True)
class MeasuredModel:
    """One model and what was measured of it."""

    title: str
    numbers: dict[str, Any]
    """As :func:`training.report.summarize` gives them."""
    results: list[EvaluatedUtterance]


def check_folder(folder: Path) -> None:
    """Make the report's folder and see that everything for a report is there, before hours of measuring.

    Raises:
        OptionError: The folder cannot be made, or a module is missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{folder}: cannot be a folder ({error.strerror or error})") from error
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise OptionError(
            f"a report needs the module {error.name}; install foresound[train,plots]"
        ) from error


def write_report(folder: Path, measured: Sequence[MeasuredModel]) -> None:
    """Write ``report.html``, its pictures and ``report.json``.

    Args:
        folder: Must exist.
        measured: The models, all on the same utterances at the same chunk sizes.
    """
    from jinja2 import Environment, FileSystemLoader

    from training.plots import draw

    models = [
        {
            "title": each.title,
            "runs": each.numbers["runs"],
            "breakdown": [break_down(each.results, index=i) for i in range(len(each.numbers["runs"]))],
        }
        for each in measured
    ]
    (folder / "report.json").write_text(
        json.dumps({"models": [{**m, **e.numbers} for m, e in zip(models, measured, strict=True)]}, indent=1),
        encoding="utf-8",
    )
    pictures = {
        title: _as_data(path.read_bytes(), "image/png") for title, path in draw(folder, models).items()
    }
    page = Environment(loader=FileSystemLoader(_TEMPLATE.parent), autoescape=True).get_template(
        _TEMPLATE.name
    )
    content = page.render(
        table=table_cells([{"model": m["title"], **run} for m in models for run in m["runs"]]),
        first=measured[0].numbers,
        models=models,
        pictures=pictures,
        groups=[_group_table(models, key) for key in ("sets", "speakers")],
        clips=_clips(measured),
    )
    (folder / "report.html").write_text(content, encoding="utf-8")


def _group_table(models: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """WER of sets or speakers, a column per model, at the first chunk size."""
    rows = []
    for row in models[0]["breakdown"][0][key][:MAX_ROWS]:
        cells = []
        for model in models:
            found = next(r for r in model["breakdown"][0][key] if r["name"] == row["name"])
            cells.append("-" if found["wer"] is None else f"{100 * found['wer']:.2f}")
        offline = "-" if row["offline_wer"] is None else f"{100 * row['offline_wer']:.2f}"
        rows.append([row["name"], row["n_utterances"], row["n_words"], *cells, offline])
    return {"title": key, "rows": rows, "n": len(models[0]["breakdown"][0][key])}


def _clips(measured: Sequence[MeasuredModel]) -> list[dict[str, Any]]:
    """The recordings with the most errors of the first model, with what each model made of them."""
    first = [result for result in measured[0].results if not result.error]
    worst = sorted(first, key=lambda result: -result.streamed[0].edits.n_edits)[:N_CLIPS]
    clips = []
    for result in worst:
        texts = []
        for each in measured:
            mine = next(r for r in each.results if r.utterance.id == result.utterance.id)
            if not mine.error:
                heard = mine.streamed[0].text
                texts.append({"title": each.title, "text": mark(result.utterance.text or "", heard)})
        clips.append(
            {
                "id": result.utterance.id,
                "speaker": result.utterance.speaker,
                "reference": result.utterance.text,
                "n_edits": result.streamed[0].edits.n_edits,
                "texts": texts,
                "offline": result.offline_text,
                "audio": _audio(result),
            }
        )
    return clips


def mark(reference: str, hypothesis: str) -> list[dict[str, str]]:
    """Pieces of a hypothesis beside its reference, for colours.

    Args:
        reference: What was said.
        hypothesis: What was heard.

    Returns:
        Pieces with ``kind`` (equal, substitute, delete, insert), ``said`` and ``heard``, all normalised.
    """
    said, heard = normalize(reference).split(), normalize(hypothesis).split()
    chunks = jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]
    return [
        {
            "kind": chunk.type,
            "said": " ".join(said[chunk.ref_start_idx : chunk.ref_end_idx]),
            "heard": " ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        }
        for chunk in chunks
    ]


def _audio(result: EvaluatedUtterance) -> str | None:
    """The recording as a data address that browsers play."""
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, load_audio(result.utterance), SAMPLE_RATE, format="MP3")
    except (AudioError, soundfile.SoundFileError):
        return None
    return _as_data(buffer.getvalue(), "audio/mpeg")


def _as_data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
