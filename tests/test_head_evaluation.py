"""Streaming a head over sets: texts, delays and the timing that its card needs."""

import pytest
import torch
from whisper.tokenizer import get_tokenizer

from asr.bpe import TruncatedBpe
from asr.chunking import Chunking
from asr.dial import LATENCY_MS
from asr.events import SAMPLE_RATE
from asr.frontier import LookPolicy
from asr.transducer_search import GreedySearch, SearchJob
from asr.words import Token, Vocabulary
from tests.heads import TINY_HEAD, tiny_head
from training.head_data import TAIL_S
from training.head_evaluation import (
    AT_ONCE,
    Encoded,
    Streamed,
    measure_dial,
    measure_timing,
    stream,
    summarize,
)
from training.manifest import WordTime
from training.metrics import EmissionLog

TOKENIZER = get_tokenizer(multilingual=False)
VOCABULARY = Vocabulary(TOKENIZER)


def _utterances(n: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    return [
        Encoded("hello", torch.randn(1, 40 + 3 * i, TINY_HEAD.encoder_width, generator=generator))
        for i in range(n)
    ]


def test_streaming_reads_what_one_pass_reads() -> None:
    """More utterances than stream together, of different lengths; every frame waits once."""
    head, utterances = tiny_head(1), _utterances(AT_ONCE + 3)
    streamed = stream(
        head, utterances, chunking=Chunking.from_ms(80), policy=LookPolicy(), vocabulary=VOCABULARY
    )
    for utterance, result in zip(utterances, streamed, strict=True):
        n_frames = utterance.frames.shape[1] // 2
        search = GreedySearch(head.transducer)
        state = search.init_state()
        search.advance([SearchJob(head(utterance.frames, torch.tensor([n_frames])).frames, state)])
        assert [token.id for token in result.tokens] == [emission.token for emission in state.draft]
        assert len(result.waits) == n_frames


def test_logs_tell_when_words_were_shown() -> None:
    """Every token's word is shown at the end of a chunk, never before its frame was heard."""
    head, utterances = tiny_head(1), _utterances(3)
    logs = [EmissionLog() for _ in utterances]
    streamed = stream(
        head,
        utterances,
        chunking=Chunking.from_ms(80),
        policy=LookPolicy(fixed=(0,) * head.config.n_blocks),
        vocabulary=VOCABULARY,
        logs=logs,
    )
    assert any(result.tokens for result in streamed)
    for utterance, result, log in zip(utterances, streamed, logs, strict=True):
        text = VOCABULARY.text(token.id for token in result.tokens)
        assert " ".join(word.text for word in log.words()) == " ".join(text.split())
        limit_s = utterance.frames.shape[1] * 0.02 - TAIL_S
        first_s = min(token.peak for token in result.tokens) / SAMPLE_RATE if result.tokens else 0.0
        for word in log.words():
            assert min(first_s, limit_s) <= word.emitted_s <= max(limit_s, 0.0) or limit_s < first_s


def test_errors_and_delays_are_summed_up() -> None:
    """Over all words and all frames."""
    bpe = TruncatedBpe.of(TOKENIZER, 1024)
    tokens = tuple(Token(i, 0.0, 0) for i in bpe.encode(" hello there"))
    result = summarize(_utterances(2), [Streamed(tokens, (0, 2, 4)), Streamed((), (2,))], VOCABULARY)
    assert (result.edits.insertions, result.edits.deletions, result.edits.n_words) == (1, 1, 2)
    assert (result.mean_ms, result.p50_ms) == (80.0, 80.0)


def test_timing_is_measured_on_words_that_were_recognised() -> None:
    """Medians from a word's start to its first token, and from its end to its last spoken token."""
    bpe = TruncatedBpe.of(TOKENIZER, 1024)
    pieces = [bpe.encode(" recognition,"), bpe.encode(" wrong"), bpe.encode(" again")]
    tokens, peak = [], 16_000
    for piece in pieces:
        for id in piece:
            tokens.append(Token(id, 0.0, peak))
            peak += 1600
    words = (WordTime("Recognition,", 0.8, 1.1), WordTime("right", 1.2, 1.4), WordTime("again", 1.5, 1.7))
    utterance = Encoded("", torch.zeros(1, 2, 4), words)
    lead_ms, lag_ms = measure_timing([utterance], [Streamed(tuple(tokens), ())], VOCABULARY)
    at = [0, len(pieces[0]), len(pieces[0]) + len(pieces[1])]
    leads = [1.0 - 0.8, 1.0 + 0.1 * at[2] - 1.5]
    spoken = len(pieces[0]) - 1  # the comma is not
    lags = [1.0 + 0.1 * (spoken - 1) - 1.1, 1.0 + 0.1 * (at[2] + len(pieces[2]) - 1) - 1.7]
    assert lead_ms == pytest.approx(1000 * sum(leads) / 2)
    assert lag_ms == pytest.approx(1000 * sum(lags) / 2)
    assert measure_timing([utterance], [Streamed((), ())], VOCABULARY) == (0.0, 0.0)


def test_a_dial_covers_the_named_positions() -> None:
    """What the head cannot reach is its farthest look."""
    dial = measure_dial(tiny_head(), _utterances(6))
    assert dial.points[0].mean_ms == 0
    assert dial.points[-1].mean_ms <= 6 * 40
    biases = [dial.bias(name) for name in LATENCY_MS]
    assert biases == sorted(biases)
