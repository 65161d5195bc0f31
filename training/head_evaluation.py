"""How well a transducer head streams, how far it looks, and the numbers its card needs.

Frames are computed once for all heads of a run: a causal encoder's frames do not depend on how audio comes,
so streaming begins at the head, chunk by chunk, through :class:`asr.transducer_reader.TransducerReader`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from asr.chunking import FRAME_MS, Chunking
from asr.dial import LATENCY_MS, Dial, calibrate
from asr.encoder import FRAME_SAMPLES
from asr.events import SAMPLE_RATE, Partial
from asr.features import LogMel
from asr.frontier import LookPolicy
from asr.head import HEAD_FRAME_MS, STACK, TransducerHead
from asr.transducer_reader import EmissionTiming, ReadJob, TransducerReader, read
from asr.words import Token, Vocabulary, build_words
from training.head_data import TAIL_S, FeatureMaker
from training.manifest import Utterance, WordTime, load_audio
from training.metrics import EmissionLog, WerResult, count_edits, normalize

AT_ONCE = 16  # utterances that stream together
NO_TIMING = EmissionTiming.from_ms(lead_ms=0, lag_ms=0)


@dataclass(frozen=True)
class Encoded:
    """One utterance as the head hears it."""

    text: str
    frames: Tensor  # [1, F, E]
    words: tuple[WordTime, ...] = ()  # when they were said, if known
    ahead: tuple[Tensor, ...] = ()  # with right context: the provisional frames after each step, [1, R, E]


@dataclass(frozen=True)
class Streamed:
    """What a head read of one utterance."""

    tokens: tuple[Token, ...]
    waits: tuple[int, ...]  # head frames that each head frame waited


@dataclass(frozen=True)
class HeadResult:
    """Word errors and delays over a set."""

    edits: WerResult
    mean_ms: float
    p50_ms: float
    p95_ms: float


def encode_utterances(
    maker: FeatureMaker,
    utterances: Sequence[Utterance],
    chunking: Chunking,
    *,
    words: dict[str, tuple[WordTime, ...]] | None = None,
) -> list[Encoded]:
    """Encode utterances with text, in chunks, for any number of evaluations.

    Args:
        maker: The frozen encoder.
        utterances: Each with a text, at most 29 s long.
        chunking: The encoder's chunks.
        words: Word times by id, where known.

    Returns:
        The utterances in order.
    """
    encoded = []
    for utterance in utterances:
        times = (words or {}).get(utterance.id, ())
        encoded.append(encode(maker, load_audio(utterance), chunking, text=utterance.text or "", words=times))
    return encoded


def encode(
    maker: FeatureMaker,
    samples: np.ndarray,
    chunking: Chunking,
    *,
    text: str,
    words: tuple[WordTime, ...] = (),
) -> Encoded:
    """Encode one utterance.

    Args:
        maker: The frozen encoder.
        samples: ``[S]`` at most 29 s.
        chunking: The encoder's chunks; with right context provisional frames are kept.
        text: What is said.
        words: When, if known.

    Returns:
        The utterance.
    """
    if chunking.right_context == 0:
        frames, lengths = maker.encode([samples], chunking)
        return Encoded(text, frames[:, : STACK * int(lengths[0])], words)
    stepped = maker.encode_steps([samples], chunking)
    ahead = tuple(part.float() for part in stepped.ahead)
    return Encoded(text, stepped.final[:, : STACK * int(stepped.lengths[0])].float(), words, ahead)


@torch.inference_mode()
def stream(
    head: TransducerHead,
    utterances: Sequence[Encoded],
    *,
    chunking: Chunking,
    policy: LookPolicy,
    vocabulary: Vocabulary,
    beam_size: int = 1,
    timing: EmissionTiming = NO_TIMING,
    logs: Sequence[EmissionLog] | None = None,
) -> list[Streamed]:
    """Let a head read utterances chunk by chunk, many at once.

    Args:
        head: In eval mode.
        utterances: What to read.
        chunking: Chunks in which frames come.
        policy: How far frames look ahead.
        vocabulary: Whisper's.
        beam_size: Hypotheses; 1 is greedy.
        timing: When words are said, seen from when their tokens come out.
        logs: One per utterance; each is told what is on the screen after every chunk, if given.

    Returns:
        One result per utterance.
    """
    results = []
    for first in range(0, len(utterances), AT_ONCE):
        group = utterances[first : first + AT_ONCE]
        readers = [
            TransducerReader(head, vocabulary, policy=policy, timing=timing, beam_size=beam_size)
            for _ in group
        ]
        tokens: list[list[Token]] = [[] for _ in group]
        waits: list[list[int]] = [[] for _ in group]
        end, n_steps, going = 0, 0, list(range(len(group)))
        while going:
            end, n_steps = chunking.next_end(end), n_steps + 1
            n_final = chunking.n_final(end)
            jobs = [_next_job(readers[i], group[i], n_final, n_steps - 1) for i in going]
            for i, reading in zip(going, read(head, jobs), strict=True):
                tokens[i] += reading.tokens
                waits[i] += reading.waits
            if logs:
                _peek(head, [job for job in jobs if job.n_provisional])
                for i in going:
                    shown = _shown(tokens[i], readers[i].draft, vocabulary, n_frames=end)
                    time_s = min(shown.time_s, group[i].frames.shape[1] * FRAME_MS / 1000 - TAIL_S)
                    logs[first + i].add([shown], time_s=time_s, compute_aware_s=time_s)
            going = [i for i, job in zip(going, jobs, strict=True) if job.then == "listen"]
        for reader, said, waited in zip(readers, tokens, waits, strict=True):
            results.append(Streamed((*said, *reader.commit_draft()), tuple(waited)))
    return results


def _shown(
    committed: Sequence[Token], draft: Sequence[Token], vocabulary: Vocabulary, *, n_frames: int
) -> Partial:
    """What a stream shows when so many encoder frames have been read; audio comes in blocks of 20 ms."""
    heard = (n_frames + 1) * FRAME_SAMPLES
    assert heard - n_frames * FRAME_SAMPLES >= LogMel.latency
    tokens = [*committed, *draft]
    words = build_words(tokens, vocabulary, n_committed=len(committed), start=0, end=heard) if tokens else ()
    return Partial(0, "", "", words, heard)


def _next_job(reader: TransducerReader, utterance: Encoded, n_final: int, step: int) -> ReadJob:
    """What a step brings of an utterance: its frames up to ``n_final``, and provisional ones."""
    n_heard, n_frames = min(reader.n_heard, n_final), utterance.frames.shape[1]
    final = utterance.frames[:, n_heard:n_final]
    if n_final >= n_frames:
        return ReadJob(reader, final, n_heard, "finish")
    if not utterance.ahead:
        return ReadJob(reader, final, n_heard)
    ahead = utterance.ahead[step][:, : n_frames - n_final]
    frames, n_ahead = torch.cat([final, ahead], dim=1), ahead.shape[1]
    return ReadJob(reader, frames, n_heard, n_provisional=n_ahead, n_encoded=n_final + n_ahead)


def _peek(head: TransducerHead, jobs: Sequence[ReadJob]) -> None:
    """Show what the provisional frames say that have not been read."""
    unread = [job for job in jobs if job.n_encoded > job.reader.n_heard]
    if unread:
        read(head, [replace(job, then="peek", n_provisional=0) for job in unread])


def summarize(
    utterances: Sequence[Encoded], streamed: Sequence[Streamed], vocabulary: Vocabulary
) -> HeadResult:
    """Word errors and delays of all utterances together."""
    edits = WerResult()
    for utterance, result in zip(utterances, streamed, strict=True):
        edits += count_edits(utterance.text, hypothesis=vocabulary.text(t.id for t in result.tokens))
    waits_ms = np.array([wait for result in streamed for wait in result.waits]) * HEAD_FRAME_MS
    p50, p95 = np.percentile(waits_ms, [50, 95])
    return HeadResult(edits, float(waits_ms.mean()), float(p50), float(p95))


def measure_dial(head: TransducerHead, utterances: Sequence[Encoded]) -> Dial:
    """Biases for the named positions and what lies between them, and for never looking ahead."""
    with torch.no_grad():
        features = [head.gather(utterance.frames) for utterance in utterances]
    targets = sorted({0, *LATENCY_MS.values(), 40, 120, 240})
    return calibrate(head.lookahead, features, targets, frame_ms=HEAD_FRAME_MS)


def measure_timing(
    utterances: Sequence[Encoded], streamed: Sequence[Streamed], vocabulary: Vocabulary
) -> tuple[float, float]:
    """When words are said, seen from when their tokens came out.

    Args:
        utterances: With word times.
        streamed: What was read of them.
        vocabulary: Whisper's.

    Returns:
        Medians in ms: from a word's start to its first token, from its end to its last spoken token; zeros
        where no word was recognised.
    """
    leads, lags = [], []
    for utterance, result in zip(utterances, streamed, strict=True):
        ids = [token.id for token in result.tokens]
        bounds = [*vocabulary.word_starts(ids), len(ids)] if ids else []
        spans = list(zip(bounds, bounds[1:], strict=False))
        heard = [normalize(vocabulary.text(ids[a:b])) for a, b in spans]
        said = [normalize(word.word) for word in utterance.words]
        matcher = difflib.SequenceMatcher(a=heard, b=said, autojunk=False)
        for block in matcher.get_matching_blocks():
            for offset in range(block.size):
                a, b = spans[block.a + offset]
                word = utterance.words[block.b + offset]
                last = a + vocabulary.n_spoken(ids[a:b]) - 1
                leads.append(result.tokens[a].peak / SAMPLE_RATE - word.start_s)
                lags.append(result.tokens[last].peak / SAMPLE_RATE - word.end_s)
    if not leads:
        return 0.0, 0.0
    return 1000 * float(np.median(leads)), 1000 * float(np.median(lags))
