"""``foresound finetune --smoke``: the whole chain in a few small steps, to see that everything is in place.

Check, align, adapter, head, export, streaming and evaluation run one after the other as in a real run; what
comes out is worth nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile

from asr import SAMPLE_RATE, OptionError, Recognizer
from asr.adapters import shipped_adapter
from training import align, check, evaluate
from training.finetune.config import FinetuneConfig, FinetuneHeadPlan, FinetunePlan
from training.manifest import load_audio, read_manifest
from training.sources import SourceOptions

N_UTTERANCES = 4  # of the data that are used
MAX_S = 12.0  # longer ones are left out where there are enough others
_T = TypeVar("_T")


def run_smoke(config: FinetuneConfig | None) -> int:
    """Run the chain in a temporary folder.

    Args:
        config: A run whose model, data and settings are tried; None uses invented words on noise.

    Returns:
        0.

    Raises:
        ForesoundError: A step failed; the text says what was wrong.
    """
    from training.finetune.run import finetune

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="foresound-smoke-") as name:
        folder = Path(name)
        source = folder / "recordings"
        _write_recordings(source, config)
        clean, aligned = folder / "clean.jsonl", folder / "aligned.jsonl"
        model = config.model if config else "tiny.en"
        _step("check", lambda: _check(source, clean))
        _step("align", lambda: _align(clean, aligned, model))
        small = _small(config, folder, clean=clean, aligned=aligned, model=model)
        exported = _step("finetune", lambda: finetune(small))
        _step("stream", lambda: _stream(exported, clean))
        _step("evaluate", lambda: _evaluate(exported, clean, folder))
    print(f"everything works: {time.monotonic() - started:.0f} s")
    return 0


def _step(name: str, work: Callable[[], _T]) -> _T:
    """Run one step of the chain and say how long it took."""
    started = time.monotonic()
    print(f"--- {name}", flush=True)
    result = work()
    print(f"--- {name}: {time.monotonic() - started:.1f} s", flush=True)
    return result


def _write_recordings(folder: Path, config: FinetuneConfig | None) -> None:
    """A folder with a few recordings and their texts: the configured data's, or noise."""
    folder.mkdir()
    if config is None:
        rng = np.random.default_rng(0)
        for i in range(N_UTTERANCES):
            loudness = np.repeat(rng.uniform(0.01, 0.2, 8), SAMPLE_RATE // 4)
            soundfile.write(folder / f"{i}.wav", rng.standard_normal(len(loudness)) * loudness, SAMPLE_RATE)
            (folder / f"{i}.txt").write_text("Four invented words here.\n", encoding="utf-8")
        return
    found = [u for u in read_manifest(config.data.manifest) if (u.text or "").strip() and u.audio.is_file()]
    if not found:
        raise OptionError(f"{config.data.manifest}: holds no recording with text whose audio is there")
    for i, utterance in enumerate(sorted(found, key=lambda u: u.duration_s > MAX_S)[:N_UTTERANCES]):
        soundfile.write(folder / f"{i}.wav", load_audio(utterance), SAMPLE_RATE)
        (folder / f"{i}.txt").write_text(f"{utterance.text}\n", encoding="utf-8")


def _check(source: Path, clean: Path) -> None:
    check.run(
        source=source,
        output=clean,
        options=SourceOptions(),
        teacher=None,
        keep_suspicious=True,
        workers=2,
        json_output=False,
    )


def _align(clean: Path, aligned: Path, model: str) -> None:
    options = align.AlignOptions(model=model, limits=None)
    align.run(manifest=clean, output=aligned, times=None, options=options)


def _small(
    config: FinetuneConfig | None, folder: Path, *, clean: Path, aligned: Path, model: str
) -> FinetuneConfig:
    """The run in two steps, with a tiny head so that every part is trained."""
    has_shipped = shipped_adapter(model) is not None
    base = config or FinetuneConfig.model_validate(
        {"output": folder, "data": {"manifest": clean, "aligned": aligned}}
    )
    short: dict[str, Any] = {"steps": 2, "warmup_steps": 1, "checkpoint_every": 1, "evaluate_every": 2}
    plan = base.adapter or FinetunePlan()
    start = plan.start_from if has_shipped or plan.start_from != "auto" else "none"
    head = replace(
        base.head or FinetuneHeadPlan(width=32, n_blocks=2, embedding_width=32, joint_width=32, n_tokens=300),
        **short,
        statistics_every=1,
        hard_share=0.5,
        start_from=None,
        features=None,
    )
    data = replace(base.data, manifest=clean, aligned=aligned, batch_s=10.0, joined_max_s=6.0)
    changes = {
        "output": folder / "run",
        "data": data,
        "dev_manifest": clean,
        "general_manifest": clean,
        "dev_limit": 2,
        "adapter": replace(plan, **short, start_from=start),
        "head": head,
    }
    return base.model_copy(update=changes)


def _stream(model: Path, clean: Path) -> None:

    recognizer = Recognizer.load(model)
    samples = load_audio(read_manifest(clean)[0])
    for decoder in recognizer.decoders:
        stream = recognizer.stream(decoder=decoder)
        stream.feed(samples)
        stream.finish()
        print(f"{decoder}: {json.dumps(stream.transcript.text)}")


def _evaluate(model: Path, clean: Path, folder: Path) -> None:
    evaluate.run(
        manifest=clean,
        model=str(model),
        adapter="auto",
        decoder="whisper",
        chunk_ms=[300],
        beam_size=1,
        second_pass=False,
        limit=1,
        alignments=None,
        workers=1,
        output=None,
        offline=False,
        report=folder / "report",
    )
