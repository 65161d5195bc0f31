"""What a check of data found, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.sources import Problem

if TYPE_CHECKING:
    from training.check import Checked

MAX_SHOWN = 8  # problems of a kind on the screen
BINS_S = (0, 1, 2, 5, 10, 15, 20, 29)


def summarize(
    checked: Sequence[Checked], kept: Sequence[Checked], problems: Sequence[Problem]
) -> dict[str, Any]:
    """The numbers of a check as plain values.

    Args:
        checked: All recordings.
        kept: Those in the clean manifest.
        problems: All problems.
    """
    good = [each for each in checked if each.duration_s > 0]
    durations = np.array([each.duration_s for each in good] or [0.0])
    by_speaker: defaultdict[str, float] = defaultdict(float)
    for each in good:
        by_speaker[each.entry.speaker or "(unknown)"] += each.duration_s
    counts, _ = np.histogram(durations, bins=[*BINS_S, np.inf])
    return {
        "n_recordings": len(checked),
        "n_kept": len(kept),
        "hours": round(sum(each.duration_s for each in good) / 3600, 4),
        "hours_kept": round(sum(each.duration_s for each in kept) / 3600, 4),
        "hours_with_text": round(
            sum(each.duration_s for each in kept if each.entry.text is not None) / 3600, 4
        ),
        "n_words": sum(len((each.entry.text or "").split()) for each in kept),
        "speakers": {name: round(s, 1) for name, s in sorted(by_speaker.items(), key=lambda item: -item[1])},
        "durations_s": {
            name: round(float(np.quantile(durations, q)), 2)
            for name, q in (("min", 0), ("p5", 0.05), ("p50", 0.5), ("p95", 0.95), ("max", 1))
        },
        "histogram": dict(zip(_bin_names(), counts.tolist(), strict=True)),
        "rates": dict(Counter(f"{each.rate} Hz" for each in good).most_common()),
        "channels": dict(Counter(str(each.n_channels) for each in good).most_common()),
        "formats": dict(Counter(each.format for each in good).most_common()),
        "problems": dict(Counter(problem.kind for problem in problems).most_common()),
    }


def _bin_names() -> list[str]:
    return [f"{low}-{high} s" for low, high in zip(BINS_S, BINS_S[1:], strict=False)] + [f"> {BINS_S[-1]} s"]


def print_report(
    checked: Sequence[Checked],
    kept: Sequence[Checked],
    problems: Sequence[Problem],
    *,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print a check on stdout.

    Args:
        checked: All recordings.
        kept: Those in the clean manifest.
        problems: All problems.
        output: The clean manifest, if one was written.
        as_json: One JSON object, the problems in it, instead of text.
    """
    numbers = summarize(checked, kept, problems)
    if as_json:
        print(json.dumps({**numbers, "problem_list": [vars(problem) for problem in problems]}))
        return
    print(f"{numbers['n_recordings']} recordings, {_length(numbers['hours'])}, {numbers['n_words']} words")
    speakers = numbers["speakers"]
    listed = ", ".join(f"{name} {_length(s / 3600)}" for name, s in list(speakers.items())[:5])
    print(f"speakers   {len(speakers)}: {listed}{', ...' if len(speakers) > 5 else ''}")
    lengths = numbers["durations_s"]
    print("durations  " + ", ".join(f"{name} {value} s" for name, value in lengths.items()))
    for name, count in numbers["histogram"].items():
        if count:
            bar = "#" * max(1, round(40 * count / max(numbers["histogram"].values())))
            print(f"  {name:>8}  {bar} {count}")
    for title, key in (("rates", "rates"), ("channels", "channels"), ("formats", "formats")):
        print(f"{title:<10} " + ", ".join(f"{name} x {count}" for name, count in numbers[key].items()))
    _print_problems(problems)
    print(f"usable     {len(kept)} of {len(checked)}, {_length(numbers['hours_kept'])}")
    if output is not None:
        print(f"written    {output}, problems in {output.with_suffix('.problems.tsv')}")


def _print_problems(problems: Sequence[Problem]) -> None:
    if not problems:
        print("problems   none")
    for kind, count in Counter(problem.kind for problem in problems).most_common():
        print(f"{kind}: {count}")
        for problem in [each for each in problems if each.kind == kind][:MAX_SHOWN]:
            print(f"  {problem.place}: {problem.message}")
        if count > MAX_SHOWN:
            print(f"  ... and {count - MAX_SHOWN} more")


def _length(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"
