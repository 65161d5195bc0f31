"""What a model believes of each word of its transcripts, and how much each word therefore counts.

Deep models learn what is consistent before they learn wrong labels by heart (S. Liu et al., "Early-Learning
Regularization", 2020), so the average of a model's own predictions tells wrong words from right ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from asr.errors import OptionError
from training.alignment import AlignedUtterance
from training.config import RobustConfig
from training.dataset import Example

METHODS = ("none", "downweight")
Observation = tuple[
    str, int, float
]  # utterance, number of the word in it, probability that the model gave it


class WordBeliefs:
    """Averages of the probabilities that a model gave to the words of its transcripts."""

    def __init__(self, config: RobustConfig, aligned: Mapping[str, AlignedUtterance]) -> None:
        """Begin with the aligner's confidences.

        Args:
            config: How beliefs change and what they do.
            aligned: The transcripts.

        Raises:
            OptionError: A setting is outside its range.
        """
        if config.method not in METHODS:
            raise OptionError(f"robust.method must be one of {', '.join(METHODS)}, not {config.method!r}")
        if not (0 < config.trust <= 1 and 0 <= config.momentum < 1 and config.neighbours >= 0):
            raise OptionError("robust.trust must be in (0, 1], momentum in [0, 1), neighbours 0 or more")
        self._config = config
        self._beliefs = {
            id: np.array([word.confidence for word in utterance.words], dtype=np.float32)
            for id, utterance in aligned.items()
        }

    def weights(self, example: Example) -> np.ndarray:
        """How much each text token of a stream counts, and its end.

        Args:
            example: A stream with known words.

        Returns:
            Float32 ``[n_tokens + 1]``, from 0 to 1; the last is for end-of-text.
        """
        if self._config.method == "none" or not example.word_of:
            return np.ones(len(example.tokens or ()) + 1, dtype=np.float32)
        of_words = np.array([self._weight(*source) for source in example.words], dtype=np.float32)
        return np.append(of_words[list(example.word_of)], of_words.mean()).astype(np.float32)

    def _weight(self, id: str, index: int) -> float:
        """One word's: its own belief and that of the words around it, geometrically."""
        beliefs, reach = self._beliefs[id], self._config.neighbours
        around = beliefs[max(0, index - reach) : index + reach + 1].mean()
        return min(1.0, float(beliefs[index] * around) / self._config.trust**2)

    def observe(self, observations: Iterable[Observation]) -> None:
        """Take in what a model has predicted.

        Args:
            observations: In an order that is the same in all processes.
        """
        keep = self._config.momentum
        for id, index, probability in observations:
            self._beliefs[id][index] = keep * self._beliefs[id][index] + (1 - keep) * probability

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {id: torch.from_numpy(beliefs.copy()) for id, beliefs in self._beliefs.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint; utterances that it does not know begin anew."""
        for id, beliefs in state.items():
            if id in self._beliefs and len(beliefs) == len(self._beliefs[id]):
                self._beliefs[id] = beliefs.numpy().copy()

    def find_doubtful(self) -> list[tuple[str, int, float]]:
        """Words that count less than half: utterance, number, weight; the least first."""
        found = [
            (id, index, self._weight(id, index))
            for id, beliefs in self._beliefs.items()
            for index in range(len(beliefs))
        ]
        return sorted((each for each in found if each[2] < 0.5), key=lambda each: each[2])


def observations(examples: Sequence[Example], probabilities: Sequence[np.ndarray]) -> list[Observation]:
    """What a model predicted of the words of some streams.

    Args:
        examples: The streams.
        probabilities: ``[n_tokens]`` of each stream's text tokens; NaN where one was not asked for.

    Returns:
        One observation for each word of which a token was asked for: the mean over its tokens.
    """
    found = []
    for example, values in zip(examples, probabilities, strict=True):
        for index, (id, number) in enumerate(example.words):
            mine = values[[i for i, word in enumerate(example.word_of) if word == index]]
            if len(mine) and not np.isnan(mine).all():
                found.append((id, number, float(np.nanmean(mine))))
    return found
