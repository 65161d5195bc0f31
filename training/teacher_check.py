"""What a teacher hears, beside what the transcripts of a source say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from tqdm import tqdm

from asr.bundle import base_of
from asr.checkpoint import load_checkpoint
from training.alignment import align_group, build_window, pack_windows, teacher_tokenizer
from training.check import Checked
from training.judge import Limits
from training.manifest import Utterance
from training.sources import Problem

BATCH_SIZE = 8  # windows


def ask_teacher(
    checked: Sequence[Checked], *, model: str, device: str = "cpu", limits: Limits | None = None
) -> list[Checked]:
    """Mark recordings whose text is not what the teacher hears.

    Args:
        checked: Recordings; those without text or usable audio are left as they are.
        model: A Whisper checkpoint's name or path.
        device: Where it computes.
        limits: How much disagreement is too much.

    Returns:
        The same recordings in order.
    """
    whisper = load_checkpoint(base_of(model), device=device).model
    tokenizer = teacher_tokenizer(whisper)
    heard = [
        Utterance(str(i), c.entry.audio, c.duration_s, c.entry.text, c.entry.speaker, "", 0, c.entry.offset_s)
        for i, c in enumerate(checked)
        if c.is_clean and (c.entry.text or "").split()
    ]
    groups = iter(pack_windows(heard))
    result = list(checked)
    with tqdm(total=len(heard), unit="utterance", file=sys.stderr, disable=None) as bar:
        while batch := [build_window(group) for group in islice(groups, BATCH_SIZE)]:
            for found in align_group(whisper, tokenizer, batch, limits=limits or Limits()):
                bar.update()
                if found.wrong is not None:
                    each = result[int(found.id)]
                    problem = Problem(each.entry.place, "teacher disagrees", found.wrong)
                    result[int(found.id)] = replace(each, problems=(*each.problems, problem))
    return result
