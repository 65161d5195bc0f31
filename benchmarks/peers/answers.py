"""What systems answered, kept line by line in a file, and the rows of numbers that follow from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr import ForesoundError, Partial, Word
from training.manifest import WordTime
from training.metrics import EmissionLog, WerResult, count_edits, percentiles, word_latencies

BASELINE = "wlk-localagreement@1"


@dataclass(frozen=True)
class Spoken:
    """An utterance that systems heard."""

    text: str
    audio_s: float
    times: Sequence[WordTime]


class Answers:
    """Utterances, and what systems answered to them.

    A line of the file is an utterance (``id``, ``text``, ``audio_s``, ``times``), or what a ``system``
    answered to one (``id``, ``looks``, ``cpu_s``, ``rss_bytes``, and how the system described itself).
    """

    def __init__(self, path: Path | None, *, model: str) -> None:
        """Read what runs before have kept; a half-written last line is taken away.

        Args:
            path: The file; None keeps nothing.
            model: The weights' name; a file is about one model.

        Raises:
            ForesoundError: The file is about another model.
        """
        self._path, self._model = path, model
        self.spoken: dict[str, Spoken] = {}
        self.played: dict[str, dict[str, dict[str, Any]]] = {}  # by system, then by utterance
        if path is None or not path.exists():
            return
        whole = path.read_text().rpartition("\n")
        path.write_text(whole[0] + whole[1])
        for line in whole[0].splitlines():
            answer = json.loads(line)
            if answer["model"] != model:
                raise ForesoundError(f"{path} is about {answer['model']}, not {model}")
            self._remember(answer)

    def keep(self, answer: dict[str, Any]) -> None:
        """Remember a line and append it to the file."""
        answer = {"model": self._model, **answer}
        self._remember(answer)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(answer) + "\n")

    def rows(self) -> dict[str, dict[str, Any]]:
        """The numbers of all systems, in the order in which they first answered."""
        baseline = self.played.get(BASELINE, {})
        return {
            name: self._row(answers) | {"ratio": _ratio(answers, baseline)}
            for name, answers in self.played.items()
        }

    def _remember(self, answer: dict[str, Any]) -> None:
        if "system" in answer:
            self.played.setdefault(answer["system"], {})[answer["id"]] = answer
        else:
            times = [WordTime(*each) for each in answer["times"]]
            self.spoken[answer["id"]] = Spoken(answer["text"], answer["audio_s"], times)

    def _row(self, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
        edits, shown_ms, committed_ms = WerResult(), list[float](), list[float]()
        for id, answer in answers.items():
            spoken = self.spoken[id]
            log = EmissionLog()
            for clock_s, committed, draft in answer["looks"]:
                log.add(as_events(committed, draft), time_s=clock_s, compute_aware_s=clock_s)
            latencies = word_latencies(log.words(), reference=spoken.times)
            shown_ms += latencies.emission_compute_aware_ms
            committed_ms += latencies.commit_ms
            edits += count_edits(spoken.text, hypothesis=answer["looks"][-1][1])
        last = next(reversed(answers.values()))
        audio_s = sum(self.spoken[id].audio_s for id in answers)
        cpu_per_s = sum(each["cpu_s"] for each in answers.values()) / audio_s / last["n_streams"]
        hears = last.get("hears", True)
        return {
            "n": len(answers),
            "audio_s": round(audio_s, 1),
            "wer": round(edits.wer, 5) if hears else None,
            "word_ms": percentiles(shown_ms) if hears else None,
            "committed_ms": percentiles(committed_ms) if hears else None,
            "cpu_per_s": round(cpu_per_s, 4),
            "streams_per_core": round(1 / cpu_per_s, 2),
            "rss_mb": round(max(each["rss_bytes"] for each in answers.values()) / 2**20),
            "start_s": round(last["start_s"], 1),
            "settings": last["settings"],
            "commits": sorted({each["commit"] for each in answers.values()} - {None}),
        }


def as_events(committed: str, draft: str) -> list[Partial]:
    """What a system showed, as one of our events; words carry no times, only whether they are stable."""
    n_stable = len(committed.split())
    words = tuple(Word(text, 0, 0, 1.0, i < n_stable) for i, text in enumerate((committed + draft).split()))
    return [Partial(0, committed, draft, words, 0)]


def _ratio(answers: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> float | None:
    """How many times as many streams as the baseline a core serves, on what both have heard."""
    common = answers.keys() & baseline.keys()
    if not common:
        return None
    mine, others = (
        sum(each[id]["cpu_s"] / each[id]["n_streams"] for id in common) for each in (answers, baseline)
    )
    return round(others / mine, 2)
