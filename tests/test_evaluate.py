"""Tests of training.evaluate and benchmarks.longrun with a recognizer that needs no weights."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tqdm import tqdm

from asr import SAMPLE_RATE, AudioError, Event, Final, OptionError, Partial, Transcript, Word
from asr.waits import Waits
from benchmarks import longrun
from benchmarks.machine import hardware
from training import evaluate
from training.manifest import ManifestError, Utterance, WordTime, read_manifest

SPOKEN = "Red green blue."
WORD_S = 0.5  # the fake hears one word in each half second


class FakeStream:
    """Shows one word more as a draft for each half second heard, and commits all but the last."""

    def __init__(self, *, second_pass: bool, looks_ahead: bool) -> None:
        """Start a stream that nothing was fed to."""
        self.waits = Waits(frames=array("H", [0, 2, 4] if looks_ahead else []))
        self._second_pass = second_pass
        self._heard = 0
        self._final: Final | None = None

    def _words(self) -> list[str]:
        return SPOKEN.split()[: int(self._heard / (WORD_S * SAMPLE_RATE))]

    def feed(self, samples: np.ndarray) -> list[Event]:
        before = self._words()
        self._heard += len(samples)
        words = self._words()
        if words == before:
            return []
        shown = tuple(Word(text, 0, 0, 1.0, stable=text != words[-1]) for text in words)
        return [Partial(0, " ".join(words[:-1]), words[-1], shown, time=self._heard)]

    def finish(self) -> list[Event]:
        text = "second pass" if self._second_pass else " ".join(self._words())
        words = tuple(Word(word, 0, 0, 1.0, stable=True) for word in text.split())
        self._final = Final(0, text, words, 0, self._heard, self._second_pass, self._heard)
        return [self._final]

    @property
    def transcript(self) -> Transcript:
        return Transcript((self._final,) if self._final else (), duration=self._heard)


class FakeRecognizer:
    """A recognizer that hears the same in every recording."""

    name = "fake"
    base_model = None

    def __init__(self) -> None:
        """Count what is asked for."""
        self.n_offline = 0
        self.options: list[dict[str, Any]] = []

    def stream(self, *, second_pass: bool = False, **options: Any) -> FakeStream:
        if options["chunk_ms"] < 40:
            raise OptionError(f"chunk_ms must be at least 40, found {options['chunk_ms']}")
        self.options.append(options)
        looks_ahead = options.get("decoder") == "transducer"
        return FakeStream(second_pass=second_pass, looks_ahead=looks_ahead)

    def transcribe_offline(self, samples: np.ndarray) -> str:
        self.n_offline += 1
        return "Red green pink."


def load_fake(model: str, adapter: str, head: str, weights: str) -> Any:
    """A loader at module level, which other processes can import."""
    return FakeRecognizer()


def fake_alignment(model: object, samples: np.ndarray, text: str) -> list[WordTime]:
    return [WordTime(word, i * WORD_S, (i + 1) * WORD_S - 0.1) for i, word in enumerate(text.split())]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three recordings of 1.5 s: two with the text that the fake hears, one without text."""
    lines = []
    for number, text in enumerate(["RED GREEN BLUE", None, "RED GREEN GOLD"]):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(24_000), SAMPLE_RATE)
        lines.append({"id": f"1-2-{number:04}", "audio": f"{number}.wav", "duration": 1.5, "text": text})
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def run(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], dict[str, Any]]]:
    """Run an evaluation with some options; gives exit code, table and JSON object."""
    monkeypatch.setattr(evaluate, "align_words", fake_alignment)

    def run_with(**options: Any) -> tuple[int, list[str], dict[str, Any]]:
        defaults: dict[str, Any] = {
            "manifest": manifest,
            "model": "tiny.en",
            "adapter": "auto",
            "decoder": "whisper",
            "chunk_ms": [300],
            "beam_size": 1,
            "second_pass": False,
            "limit": None,
            "alignments": None,
            "workers": 1,
            "output": None,
            "offline": True,
            "load": load_fake,
        }
        code = evaluate.run(**defaults | options)
        *table, last = capsys.readouterr().out.splitlines()
        return code, table, json.loads(last, parse_constant=lambda constant: pytest.fail(constant))

    return run_with


def test_last_line_is_the_report(run: Any) -> None:
    """The last line holds every promised number, with the right values."""
    code, table, report = run()
    assert code == 0 and len(table) == 3
    assert report["wer"] == pytest.approx(1 / 6)
    assert report["offline_wer"] == pytest.approx(2 / 6)
    assert report["wer_ratio"] == pytest.approx(0.5)
    assert report["latency_ms"] == {"p50": pytest.approx(100), "p95": pytest.approx(100)}
    assert report["latency_compute_aware_ms"]["p50"] >= 100
    assert report["commit_latency_ms"]["p50"] == pytest.approx(600)
    assert report["n_latency_words"] == 5
    assert report["rtf"] > 0
    assert (report["n_utterances"], report["n_without_text"], report["n_failed"]) == (2, 1, 0)
    assert report["hours"] == pytest.approx(3 / 3600)
    assert (report["chunk_ms"], report["model"], report["adapter"]) == (300, "tiny.en", "auto")
    assert report["reference_times"] == {"forced": 0, "weak": 2, "none": 0}


def test_lookahead_is_reported_where_there_is_one(run: Any) -> None:
    """Per frame and per word, in the table too; Whisper's decoder has none."""
    _, table, report = run(decoder="transducer", head="folder", latency="low")
    assert report["lookahead_ms"] == {
        "frame": {"mean": 80.0, "p50": 80.0, "p95": 160.0},
        "word": {"mean": 0.0, "p50": 0.0, "p95": 0.0},  # the fake's words end at 0
    }
    assert (report["head"], report["latency"]) == ("folder", "low")
    assert "lookahead" in table[0] and " 80/160 " in table[2]
    _, table, report = run()
    assert report["lookahead_ms"] is None and "lookahead" not in table[0]


def test_several_chunk_sizes_share_the_offline_pass(run: Any) -> None:
    """Each chunk size has a row and a run; offline Whisper runs once per utterance."""
    recognizer = FakeRecognizer()
    _, table, report = run(chunk_ms=[80, 300], beam_size=2, load=lambda *_: recognizer)
    assert len(table) == 4
    assert [entry["chunk_ms"] for entry in report["runs"]] == [80, 300]
    assert report["chunk_ms"] == 80
    assert recognizer.n_offline == 2
    assert recognizer.options[-1] == {
        "chunk_ms": 300,
        "right_context_ms": None,
        "decoder": "whisper",
        "latency": None,
        "beam_size": 2,
    }


def test_second_pass_stands_beside_the_streamed_text(run: Any) -> None:
    """The second pass has its own word error rate and does not touch the streamed one."""
    _, table, report = run(second_pass=True)
    assert report["wer"] == pytest.approx(1 / 6)
    assert report["second_pass_wer"] == pytest.approx(1.0)
    assert "100.00" in table[-1]


def test_without_offline(run: Any) -> None:
    """Offline Whisper is left out on demand."""
    recognizer = FakeRecognizer()
    _, _, report = run(offline=False, limit=1, load=lambda *_: recognizer)
    assert recognizer.n_offline == 0
    assert report["offline_wer"] is None and report["wer_ratio"] is None
    assert report["n_utterances"] == 1 and report["wer"] == 0.0


def test_broken_audio_is_skipped(run: Any, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken file is named with its line, the others are evaluated, and the exit code says so."""
    messages: list[str] = []
    monkeypatch.setattr(tqdm, "write", lambda text, file: messages.append(text))
    (manifest.parent / "2.wav").write_text("not audio")
    code, _, report = run()
    assert code == 1
    assert (report["n_failed"], report["n_utterances"], report["wer"]) == (1, 1, 0.0)
    (message,) = messages
    assert message.startswith(f"{manifest}:3: skipped: ")


def test_only_broken_audio(run: Any, manifest: Path) -> None:
    """With nothing left to measure the report still is JSON, with nulls."""
    for audio in manifest.parent.glob("*.wav"):
        audio.unlink()
    code, table, report = run()
    assert code == 1 and len(table) == 3
    assert report["wer"] is None and report["latency_ms"] is None and report["rtf"] is None


def test_workers_find_the_same(run: Any, manifest: Path, tmp_path: Path) -> None:
    """Two processes, with word times from a file, give the numbers that one gives."""
    alignments = tmp_path / "alignments.jsonl"
    words = [["red", 0.0, 0.4], ["green", 0.5, 0.9], ["blue", 1.0, 1.4]]
    lines = [{"id": f"1-2-{number:04}", "words": words} for number in (0, 2)]
    alignments.write_text("\n".join(map(json.dumps, lines)))
    _, _, alone = run(alignments=alignments)
    code, _, report = run(alignments=alignments, workers=2)
    assert code == 0
    assert report["reference_times"] == {"forced": 2, "weak": 0, "none": 0}
    for key in ("wer", "offline_wer", "latency_ms", "commit_latency_ms", "n_latency_words", "hours"):
        assert report[key] == alone[key]


def test_output_file(run: Any, tmp_path: Path) -> None:
    """The output file has one line per utterance with its texts."""
    run(output=tmp_path / "out.jsonl", second_pass=True)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["reference"] for record in records] == ["RED GREEN BLUE", "RED GREEN GOLD"]
    assert records[0]["offline_text"] == "Red green pink."
    assert records[0]["streamed"][0]["text"] == SPOKEN
    assert records[0]["streamed"][0]["second_pass_text"] == "second pass"


def test_unusable_options(run: Any, tmp_path: Path) -> None:
    """Options that cannot work are refused before anything is streamed."""
    bad: list[dict[str, Any]] = [{"chunk_ms": []}, {"chunk_ms": [300, 1]}, {"limit": 0}, {"workers": 0}]
    for options in [*bad, {"output": tmp_path / "missing" / "out.jsonl"}]:
        with pytest.raises(OptionError):
            run(**options)


def test_manifest_without_text(run: Any, tmp_path: Path) -> None:
    """A manifest without any text has nothing to evaluate."""
    path = tmp_path / "noise.jsonl"
    path.write_text('{"audio": "a.wav", "duration": 1}')
    with pytest.raises(ManifestError, match="no line has a text"):
        run(manifest=path)


def test_reference_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced times win, weak ones follow the teacher's spelling, long audio has none."""
    texts: list[str] = []

    def align(model: object, samples: np.ndarray, text: str) -> list[WordTime]:
        texts.append(text)
        if len(text) > 100:
            raise ValueError("too many tokens")
        return fake_alignment(model, samples, text)

    monkeypatch.setattr(evaluate, "align_words", align)
    forced = [WordTime("red", 0.0, 1.0)]

    def times(text: str, *, seconds: float, forced: list[WordTime] | None = None) -> tuple[Any, str]:
        samples = np.zeros(int(seconds * SAMPLE_RATE), dtype=np.float32)
        recognizer: Any = FakeRecognizer()
        return evaluate.reference_times(
            recognizer, samples, text=text, forced=forced, offline_text="Red, green."
        )

    assert times("RED", seconds=1, forced=forced) == (forced, "forced")
    assert times("RED GREEN", seconds=1)[1] == "weak" and texts == ["Red, green."]
    assert times("RED GREEN", seconds=31) == ([], "none")
    assert times("RED GREEN " * 50, seconds=1) == ([], "none")


def test_stream_wer(manifest: Path) -> None:
    """The training loop's word error rate is that of the evaluation and skips unknown texts."""
    recognizer: Any = FakeRecognizer()
    result = evaluate.stream_wer(recognizer, read_manifest(manifest), chunk_ms=300)
    assert (result.n_edits, result.n_words) == (1, 6)
    assert recognizer.n_offline == 0
    (manifest.parent / "0.wav").unlink()
    with pytest.raises(AudioError, match=r"0\.wav"):
        evaluate.stream_wer(recognizer, read_manifest(manifest), chunk_ms=300)


def utterance(id: str, *, text: str | None = "RED GREEN BLUE") -> Utterance:
    return Utterance(id, Path(f"{id}.wav"), 30.0, text=text, speaker=None, set="s", line=1)


def test_pick_chapters() -> None:
    """Consecutive numbers make a stretch; a gap, another chapter or a missing text ends it."""
    ids = ["1-1-0002", "1-1-0001", "1-1-0004", "2-7-0000", "no_chapter", "2-7-0001", "2-7-0002"]
    utterances = [utterance("1-1-0005", text=None), *map(utterance, ids)]
    stretches = longrun.pick_chapters(utterances, minutes=2.5)
    expected = [["1-1-0001", "1-1-0002"], ["1-1-0004"], ["2-7-0000", "2-7-0001"]]
    assert [[item.id for item in stretch] for stretch in stretches] == expected
    with pytest.raises(ManifestError, match=r"only 3\.0 minutes"):
        longrun.pick_chapters(utterances, minutes=4)


def test_longrun_report(manifest: Path) -> None:
    """A joined recording is streamed, compared with its parts and printed."""
    spoken = [item for item in read_manifest(manifest) if item.text]
    recognizer: Any = FakeRecognizer()
    report = longrun.measure(recognizer, [spoken[:1], spoken[1:]], chunk_ms=300)
    assert report["minutes"] == pytest.approx(4 / 60)
    assert (report["n_utterances"], report["n_stretches"], report["n_segments"]) == (2, 2, 1)
    assert report["alone"]["wer"] == pytest.approx(1 / 6)
    assert report["joined"] == {"wer": 0.5, "n_words": 6, "substitutions": 0, "deletions": 3, "insertions": 0}
    assert report["relative_wer_difference"] == pytest.approx(2.0)
    assert report["last_to_first"]["median_ms"] == 1.0
    assert report["last_to_alone"]["mean_ms"] > 0
    text = longrun.format_report(report)
    assert "50.00% (0 substitutions, 3 deletions, 0 insertions)" in text and "+200.0%" in text
    short = longrun.measure(recognizer, [spoken], chunk_ms=300, with_alone=False)
    assert (short["alone"], short["relative_wer_difference"]) == (None, None)
    assert "WER alone    -" in longrun.format_report(short)
    assert json.loads(json.dumps(report | hardware()))["cores"] == os.cpu_count()
