"""What a client asks of a stream, and what a slot answers: the types between session and batcher.

Nothing here knows a protocol, a socket or a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from asr.events import Event

_BYTES_PER_SAMPLE = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
COMPRESSED_ENCODINGS = ("flac", "ogg_opus")
ENCODINGS = (*_BYTES_PER_SAMPLE, *COMPRESSED_ENCODINGS)
# For the protocols of others, whose clients do not always say what they send.
OPUS = "opus"  # Opus packets, one a push; or in Ogg or WebM, as their first bytes tell
CONTAINER = "container"  # WAV, Ogg, WebM, FLAC, MP3 or AAC, as the first bytes tell
_NOMINAL_BYTES_PER_S = {"flac": 30_000.0, "ogg_opus": 4_000.0, OPUS: 4_000.0, CONTAINER: 16_000.0}


class NoSlotError(Exception):
    """All slots are taken."""


@dataclass(frozen=True)
class AudioFormat:
    """How a client's bytes are to be read.

    Attributes:
        encoding: One of ``ENCODINGS``, ``OPUS``, ``CONTAINER``; samples of several channels are interleaved.
        sample_rate: In Hz; compressed audio and containers say their own.
        channels: Averaged or split; compressed audio and containers say their own.
        is_split: Each channel is recognised by itself; not for compressed audio and containers.
    """

    encoding: str = "pcm_s16le"
    sample_rate: int = 16_000
    channels: int = 1
    is_split: bool = False

    @property
    def bytes_per_frame(self) -> int | None:
        """Bytes of one sample of every channel; None for compressed audio."""
        size = _BYTES_PER_SAMPLE.get(self.encoding)
        return None if size is None else size * self.channels

    @property
    def bytes_per_s(self) -> float:
        """Bytes of a second; of compressed audio what is usual."""
        size = self.bytes_per_frame
        return _NOMINAL_BYTES_PER_S[self.encoding] if size is None else float(size * self.sample_rate)

    @property
    def n_streams(self) -> int:
        """How many streams recognise it."""
        return self.channels if self.is_split else 1


@dataclass(frozen=True)
class StreamSettings:
    """How a stream is recognised; :meth:`asr.Recognizer.stream` says what the values mean.

    Attributes:
        hotwords: Names and terms to expect.
        right_context_ms: None is the usual one for the chunk size.
        latency: The transducer's; None for Whisper's decoder, and where nobody asked for one.
    """

    decoder: str = "whisper"
    chunk_ms: int = 300
    right_context_ms: int | None = None
    beam_size: int = 1
    language: str | None = None
    prompt: str | None = None
    second_pass: bool = False
    silence_ms: int = 800
    max_segment_s: float = 30.0
    hotwords: tuple[str, ...] = ()
    latency: str | float | None = None

    def with_chunk_ms(self, chunk_ms: int) -> StreamSettings:
        """The same with chunks of another size, whose right context is the usual one."""
        return self if chunk_ms == self.chunk_ms else replace(self, chunk_ms=chunk_ms, right_context_ms=None)

    @property
    def full_prompt(self) -> str | None:
        """The prompt with the hotwords behind it, for a recogniser that knows no other way to expect them."""
        parts = [self.prompt, ", ".join(self.hotwords)]
        return " ".join(part for part in parts if part) or None


@dataclass(frozen=True)
class Flushed:
    """Everything fed before the flush is final; ``samples`` were heard, at 16 kHz."""

    samples: int


@dataclass(frozen=True)
class Progress:
    """Everything up to ``time``, in 16 kHz samples, has been recognised; what follows has not been heard.

    ``n_due`` more samples are needed before any of them are.
    """

    time: int
    n_due: int = 0


@dataclass(frozen=True)
class OnChannel:
    """What one of several separate channels gave; they are counted from 0."""

    channel: int
    event: Event | Progress


@dataclass(frozen=True)
class Finished:
    """The stream has ended as asked; ``busy_s`` is its share of the model's time."""

    audio_s: float
    busy_s: float


@dataclass(frozen=True)
class Failed:
    """The stream has ended by an error; an AudioError is the client's fault, anything else ours."""

    error: Exception


Output = Event | Flushed | Progress | OnChannel | Finished | Failed
