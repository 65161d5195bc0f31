"""A finished segment once more by the original Whisper: more accurate, and no hurry."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from whisper.model import Whisper

from asr import offline
from asr.engine import Text
from asr.events import Final
from asr.words import build_words


@dataclass(frozen=True)
class PendingFinal:
    """A segment that waits for its second pass, which anybody may run, in any thread.

    Attributes:
        first: The segment as it was heard while streaming.
        samples: Its audio, float32 ``[N]``.
        origin: Sample of the stream at which the audio starts.
        model: The original weights.
        text: Of the stream's language.
    """

    first: Final
    samples: np.ndarray
    origin: int
    model: Whisper
    text: Text

    def run(self) -> Final:
        """The segment in the original Whisper's words, or as it was where that goes round in circles."""
        with torch.inference_mode():
            tokens = offline.retranscribe(self.model, self.text.tokenizer, self.samples, origin=self.origin)
        if tokens is None:
            return self.first
        first, vocabulary = self.first, self.text.vocabulary
        words = build_words(tokens, vocabulary, n_committed=len(tokens), start=first.start, end=first.end)
        text = vocabulary.text(token.id for token in tokens).strip()
        return replace(first, text=text, words=words, second_pass=True)
