"""What all streams share: weights, stateless parts over them, and the steps that streams take together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from whisper.model import Whisper
from whisper.tokenizer import Tokenizer, get_tokenizer

from asr.biasing import Biasing, Strength, TokenTrie, spellings
from asr.bpe import TruncatedBpe
from asr.decoder import Decoder, DecoderJob, DecoderResult
from asr.encoder import CausalEncoder
from asr.features import LogMel
from asr.head import TransducerHead
from asr.rules import Rule, default_rules
from asr.slots import Slot, new_slot
from asr.transducer_reader import Reading, ReadJob, read
from asr.transducer_search import Hotwords
from asr.vad import SileroVad, VadJob, VadResult
from asr.window import WindowJob
from asr.words import SPACELESS_LANGUAGES, Vocabulary

_T = TypeVar("_T")
_J = TypeVar("_J")
_R = TypeVar("_R")
Job = VadJob | WindowJob | DecoderJob | ReadJob
Answer = VadResult | Tensor | DecoderResult | Reading | None  # of a window, its new frames [1, F, E]
Task = Generator[Job, Answer, _T]  # asks for steps of the model, returns a T


@dataclass(frozen=True)
class Text:
    """What reading and writing one language needs."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    rules: Sequence[Rule]
    n_vocab: int
    device: torch.device

    def encode(self, text: str) -> list[int]:
        """The tokens of any text, even of one that looks like a special token."""
        return list(self.tokenizer.encode(text, disallowed_special=()))

    def biasing(self, hotwords: Sequence[str], strength: Strength) -> Biasing:
        """A rule that boosts terms in every spelling that the text may have."""
        return self._hotwords(hotwords, strength, encode=self.encode, n_vocab=self.n_vocab).biasing

    def hotwords(self, hotwords: Sequence[str], strength: Strength, *, n_tokens: int) -> Hotwords | None:
        """The same in a transducer's vocabulary, the first ``n_tokens`` tokens; None without terms."""
        if not hotwords:
            return None
        encode = TruncatedBpe.of(self.tokenizer, n_tokens).encode
        return self._hotwords(hotwords, strength, encode=encode, n_vocab=n_tokens)

    def _hotwords(
        self,
        hotwords: Sequence[str],
        strength: Strength,
        *,
        encode: Callable[[str], list[int]],
        n_vocab: int,
    ) -> Hotwords:
        has_blanks = self.tokenizer.language not in SPACELESS_LANGUAGES
        inside = self._inside[:n_vocab] if has_blanks else None
        trie = TokenTrie(
            [list(map(encode, spellings(term, has_blanks=has_blanks))) for term in hotwords],
            is_inside=lambda token: inside is not None and bool(inside[token]),
        )
        return Hotwords(trie, Biasing(trie, strength, n_vocab=n_vocab, inside=inside, device=self.device))

    @cached_property
    def _inside(self) -> Tensor:
        """Boolean ``[V]``: tokens that go on with the word before them."""
        starts = [self.vocabulary.text([token])[:1].isalnum() for token in range(self.tokenizer.eot)]
        inside = torch.zeros(self.n_vocab, dtype=torch.bool, device=self.device)
        inside[: len(starts)] = torch.tensor(starts, device=self.device)
        return inside


@dataclass(frozen=True)
class Engine:
    """Weights and stateless parts.

    Attributes:
        head: The transducer's; None where streams can only be read by Whisper's decoder.
    """

    base_model: Whisper
    encoder: CausalEncoder
    decoder: Decoder
    log_mel: LogMel
    vad: SileroVad
    head: TransducerHead | None = None
    _texts: dict[str, Text] = field(default_factory=dict)  # by language, made when first wanted

    def text(self, language: str) -> Text:
        """Tokenizer, vocabulary and rules of a language."""
        if language not in self._texts:
            model = self.base_model
            tokenizer = get_tokenizer(
                model.is_multilingual, num_languages=model.num_languages, language=language, task="transcribe"
            )
            weights = self.decoder.weights
            n_vocab, device = weights.token_embedding.num_embeddings, weights.positional_embedding.device
            rules = default_rules(tokenizer, n_vocab=n_vocab, device=device)
            self._texts[language] = Text(tokenizer, Vocabulary(tokenizer), rules, n_vocab, device)
        return self._texts[language]

    def new_slot(self, *, left_context: int) -> Slot:
        """State for one stream whose chunks look back ``left_context`` encoder frames at most."""
        return new_slot(self.encoder, self.decoder, self.log_mel, left_context=left_context)

    def run(self, tasks: Sequence[Task[_T]]) -> list[_T | Exception]:
        """Run tasks to their ends; in every round, the steps that all of them ask for are taken together.

        Args:
            tasks: Of different streams.

        Returns:
            What each returned or raised. An error of one does not touch the others.
        """
        outcomes: dict[int, _T | Exception] = {}
        answers: dict[int, Answer | Exception] = dict.fromkeys(range(len(tasks)))
        with torch.inference_mode():
            while answers:
                jobs: dict[int, Job] = {}
                for index, answer in answers.items():
                    try:
                        if isinstance(answer, Exception):
                            jobs[index] = tasks[index].throw(answer)
                        else:
                            jobs[index] = tasks[index].send(answer)
                    except StopIteration as stop:
                        outcomes[index] = stop.value
                    except Exception as error:
                        outcomes[index] = error
                answers = self._answer(jobs)
        return [outcomes[index] for index in range(len(tasks))]

    def _answer(self, jobs: dict[int, Job]) -> dict[int, Answer | Exception]:
        vad_jobs = {i: job for i, job in jobs.items() if isinstance(job, VadJob)}
        encoder_jobs = {i: job for i, job in jobs.items() if isinstance(job, WindowJob)}
        decoder_jobs = {i: job for i, job in jobs.items() if isinstance(job, DecoderJob)}
        read_jobs = {i: job for i, job in jobs.items() if isinstance(job, ReadJob)}
        return {
            **_together(vad_jobs, self.vad.step_jobs),
            **self._encode(encoder_jobs),
            **_together(decoder_jobs, self.decoder.step),
            **_together(read_jobs, self._read),
        }

    def _encode(self, jobs: dict[int, WindowJob]) -> dict[int, Tensor | Exception]:
        """Encode, and append what Whisper's decoder reads to its caches."""
        encoded = _together(jobs, lambda several: self.encoder.step([job.encoder for job in several]))
        to_append = {
            i: (frames, cross)
            for i, frames in encoded.items()
            if not isinstance(frames, Exception) and (cross := jobs[i].cross) is not None
        }
        appended = _together(to_append, self.decoder.append_frames)
        failed = {i: error for i, error in appended.items() if isinstance(error, Exception)}
        return {**encoded, **failed}

    def _read(self, jobs: Sequence[ReadJob]) -> list[Reading]:
        assert self.head, "a stream is read by a head that is not there"
        return read(self.head, jobs)


def _together(jobs: dict[int, _J], step: Callable[[Sequence[_J]], Sequence[_R]]) -> dict[int, _R | Exception]:
    """Take a step with all jobs at once, or with each alone if that fails, so that only the culprit fails."""
    if not jobs:
        return {}
    try:
        return dict(zip(jobs, step(list(jobs.values())), strict=True))
    except Exception as error:
        if len(jobs) == 1:
            return dict.fromkeys(jobs, error)
        alone = [_together({i: job}, step) for i, job in jobs.items()]
        return {i: result for each in alone for i, result in each.items()}
