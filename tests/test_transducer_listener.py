"""The transducer's listener: windows move on and silence comes and goes, and every word is read once."""

import pytest
import torch
from whisper.tokenizer import get_tokenizer

from asr.chunking import Chunking
from asr.decoder import Decoder
from asr.encoder import CausalEncoder
from asr.engine import Text
from asr.features import LogMel, RunningNorm
from asr.frontier import LookPolicy
from asr.head import TransducerHead
from asr.slots import new_slot
from asr.transducer_listener import EARLY_SPEECH, Steps, TransducerListener
from asr.transducer_reader import EmissionTiming, ReadJob, TransducerReader, read
from asr.window import Window
from asr.words import Token, Vocabulary
from tests.heads import let_speak, tiny_head
from tests.tiny import tiny_whisper

TOKENIZER = get_tokenizer(multilingual=False)
VOCABULARY = Vocabulary(TOKENIZER)
CHUNKING = Chunking.from_ms(300, left_context_s=3.0)
CPU = torch.device("cpu")
MODEL = tiny_whisper()
ENCODER = CausalEncoder(MODEL.encoder)
LOG_MEL = LogMel(80)


@pytest.fixture(scope="module")
def head() -> TransducerHead:
    """Says something in every second of :func:`_noise`."""
    head = tiny_head(3)
    with torch.inference_mode():
        mel = RunningNorm().forward(LOG_MEL.forward(_noise(20.01)))[0]
        frames = ENCODER.forward(mel, CHUNKING)
        let_speak(head, head(frames, torch.tensor([frames.shape[1] // 2])).frames)
    return head


def _reader(head: TransducerHead) -> TransducerReader:
    timing = EmissionTiming.from_ms(lead_ms=300, lag_ms=0)
    return TransducerReader(head, VOCABULARY, policy=LookPolicy(), timing=timing)


def _listener(head: TransducerHead) -> TransducerListener:
    decoder = Decoder(MODEL.decoder, MODEL.alignment_heads)
    slot = new_slot(ENCODER, decoder, LOG_MEL, left_context=CHUNKING.left_context)
    return TransducerListener(
        Window(LOG_MEL, CHUNKING, slot),
        _reader(head),
        texts=lambda language: Text(TOKENIZER, VOCABULARY, [language], 0, CPU),  # type: ignore[list-item]
        language="en",
    )


def _run(steps: Steps[list[Token]] | Steps[None], head: TransducerHead) -> list[Token] | None:
    """Give a generator what it asks for, as the engine does."""
    reading = None
    while True:
        try:
            job = steps.send(reading)  # type: ignore[arg-type]
        except StopIteration as stop:
            return stop.value
        (reading,) = read(head, [job])


class Harness:
    """Feeds a listener as a stream does, and remembers the first frames of every place."""

    def __init__(self, head: TransducerHead) -> None:
        self.head = head
        self.listener = _listener(head)
        self.frames: list[torch.Tensor] = []  # [1, 1, E] each
        self.n_heard = 0

    def feed(self, samples: torch.Tensor, *, keep: bool = True) -> None:
        """Hear samples; encode every chunk they complete, which is not read yet."""
        window = self.listener.window
        while True:
            n_missing = max(0, window.due - self.n_heard)
            if samples.shape[1] < n_missing:
                break
            self._hear(samples[:, :n_missing])
            samples = samples[:, n_missing:]
            if self.listener.is_full:
                self.listener.restart_in_speech()
                continue
            first = window.anchor // 2 + window.position
            (frames,) = ENCODER.step([window.next_job().encoder])
            if keep:
                self.frames += list(frames[:, len(self.frames) - first :].split(1, dim=1))
            self.listener.accept(frames)
        self._hear(samples)

    def _hear(self, samples: torch.Tensor) -> None:
        self.listener.hear(samples)
        self.n_heard += samples.shape[1]

    def decode(self) -> list[Token]:
        return _run(self.listener.decode(n_in_segment=0), self.head) or []

    def expected(self, n_frames: int | None = None) -> list[tuple[int, int]]:
        """What a reader says of the frames."""
        reader = _reader(self.head)
        frames = torch.cat(self.frames[:n_frames], dim=1)
        (reading,) = read(self.head, [ReadJob(reader, frames, 0, "finish")])
        return _seen([*reading.tokens, *reader.commit_draft()])


def _noise(seconds: float, seed: int = 0) -> torch.Tensor:
    """Bursts of noise."""
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.rand(1, round(seconds * 20) + 1, generator=generator) ** 4
    samples = torch.randn(1, round(seconds * 16_000), generator=generator)
    return samples * loudness.repeat_interleave(800, dim=1)[:, : samples.shape[1]]


def _seen(tokens: list[Token]) -> list[tuple[int, int]]:
    return [(token.id, token.peak) for token in tokens]


@torch.inference_mode()
def test_every_frame_is_read_once_through_restarted_windows(head: TransducerHead) -> None:
    """Forty seconds, a window that fills up, one that restarts in a pause, chunks read one by one or not."""
    harness = Harness(head)
    tokens: list[Token] = []
    for index, block in enumerate(_noise(40.0).split(7_000, dim=1)):
        harness.feed(block)
        if index % 3:
            tokens += harness.decode()
        if index == 40:
            harness.listener.restart_in_pause(harness.listener.window.end - 16_000)
    tokens += _run(harness.listener.finish(), head) or []
    assert len(tokens) > 40
    assert _seen(tokens) == harness.expected()
    assert len(harness.listener.waits.frames) == len(harness.frames) // 2
    assert harness.listener.draft == ()


@torch.inference_mode()
def test_a_flush_reads_silence_that_was_never_there(head: TransducerHead) -> None:
    """Before and after it, what is real is read once."""
    harness = Harness(head)
    harness.feed(_noise(4.1))
    tokens = harness.decode()
    harness.feed(_noise(0.9, seed=2))
    tokens += _run(harness.listener.before_flush(), head) or []
    n_real, n_heard = len(harness.frames), harness.n_heard
    mark = harness.listener.window.mark()
    harness.feed(torch.zeros(1, 12_000), keep=False)
    tokens += _run(harness.listener.flush(n_in_segment=0), head) or []
    assert harness.listener.draft == ()
    assert len(harness.listener.waits.frames) == n_real // 2
    before = [seen for seen in _seen(tokens) if seen[1] < (n_real // 2 - 8) * 640]
    assert before == [seen for seen in harness.expected(n_real) if seen[1] < (n_real // 2 - 8) * 640]
    harness.listener.window.go_back(mark)
    harness.n_heard = n_heard
    harness.feed(_noise(4.0, seed=3))
    later = [*harness.decode(), *(_run(harness.listener.finish(), head) or [])]
    settled = (n_real // 2 + 10) * 640
    expected = [seen for seen in harness.expected() if seen[1] > settled]
    assert len(expected) > 3
    assert [seen for seen in _seen(later) if seen[1] > settled] == expected
    assert len(harness.listener.waits.frames) == len(harness.frames) // 2


@torch.inference_mode()
def test_what_comes_out_in_silence_is_forgotten(head: TransducerHead) -> None:
    """Except for what came just before speech was noticed."""
    harness = Harness(head)
    for block in _noise(6.0).split(4_800, dim=1):
        harness.feed(block)
        assert _run(harness.listener.skip(), head) is None
    skipped_at = harness.listener.heard
    harness.feed(_noise(2.0, seed=1))
    tokens = [*harness.decode(), *harness.listener.commit_draft()]
    assert tokens
    assert all(token.peak > skipped_at - EARLY_SPEECH for token in tokens)
    late = [seen for seen in harness.expected() if skipped_at + 16_000 < seen[1] <= tokens[-1].peak]
    assert late == [seen for seen in _seen(tokens) if seen[1] > skipped_at + 16_000]


def test_it_never_loses_its_place(head: TransducerHead) -> None:
    """So nothing is read again for want of words."""
    harness = Harness(head)
    harness.feed(_noise(3.0))
    assert harness.listener.last_peak == harness.listener.window.end > 0
    assert not harness.listener.has_old_draft
    assert not harness.listener.is_long
    assert harness.listener.heard < harness.listener.window.end


def test_a_language_changes_what_its_text_needs(head: TransducerHead) -> None:
    """Nothing else: the head speaks what it was trained on."""
    listener = _listener(head)
    assert listener.text.rules == ["en"]
    listener.set_language("de")
    assert listener.text.rules == ["de"]
    assert listener.vocabulary is VOCABULARY
