"""A stream for each channel of a client's audio, which together look like one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from service.stream_settings import (
    AudioFormat,
    Failed,
    Finished,
    Flushed,
    OnChannel,
    Output,
    StreamSettings,
)

if TYPE_CHECKING:
    from service.live import BatcherLike, SlotLike

Deliver = Callable[[Sequence[Output]], None]


async def open_stream(
    batcher: BatcherLike, audio: AudioFormat, settings: StreamSettings, deliver: Deliver
) -> SlotLike:
    """Open what a client asks for: one stream, or one for each channel.

    Args:
        batcher: Where.
        audio: What the client sends.
        settings: How it is recognised.
        deliver: Takes the outputs; those of separate channels as :class:`OnChannel`.

    Raises:
        OptionError: The model refuses a setting.
    """
    if audio.n_streams == 1:
        return await batcher.open(audio, settings, deliver)
    slots = ChannelSlots(audio, deliver)
    try:
        await slots.open(batcher, settings)
    except BaseException:
        slots.close()
        raise
    return slots


class ChannelSlots:
    """One slot for each channel; see `SlotLike`.

    What concerns the whole is delivered once: a flush when every channel has flushed, the end when every one
    has ended, and an error ends all of them.
    """

    def __init__(self, audio: AudioFormat, deliver: Deliver) -> None:
        """Begin without slots.

        Args:
            audio: Interleaved samples.
            deliver: As for :func:`open_stream`.
        """
        assert audio.bytes_per_frame is not None
        self._audio = audio
        self._sample_bytes = audio.bytes_per_frame // audio.channels
        self._deliver = deliver
        self._slots: list[SlotLike] = []
        self._n_flushed = [0] * audio.channels
        self._finished: list[Finished] = []

    async def open(self, batcher: BatcherLike, settings: StreamSettings) -> None:
        """Open the slots.

        Args:
            batcher: Where.
            settings: The same for all.
        """
        mono = replace(self._audio, channels=1, is_split=False)
        for channel in range(self._audio.channels):
            self._slots.append(await batcher.open(mono, settings, partial(self._take, channel)))

    @property
    def queued_s(self) -> float:
        """Audio fed and not yet recognised on every channel, in seconds."""
        return max(slot.queued_s for slot in self._slots)

    def feed(self, data: bytes) -> None:
        """Take whole sample frames."""
        samples = np.frombuffer(data, np.uint8).reshape(-1, self._audio.channels, self._sample_bytes)
        for channel, slot in enumerate(self._slots):
            slot.feed(samples[:, channel].tobytes())

    def flush(self) -> None:
        """Make everything final on every channel, then deliver ``Flushed``."""
        for slot in self._slots:
            slot.flush()

    def finish(self) -> None:
        """Make everything final on every channel, then deliver ``Finished``."""
        for slot in self._slots:
            slot.finish()

    def close(self) -> None:
        """Give all channels up."""
        for slot in self._slots:
            slot.close()

    def _take(self, channel: int, outputs: Sequence[Output]) -> None:
        told = [each for output in outputs for each in self._told(channel, output)]
        if told:
            self._deliver(told)

    def _told(self, channel: int, output: Output) -> Sequence[Output]:
        match output:
            case Flushed():
                n_before = min(self._n_flushed)
                self._n_flushed[channel] += 1
                return [output] if min(self._n_flushed) > n_before else []
            case Finished():
                self._finished.append(output)
                if len(self._finished) < len(self._slots):
                    return []
                audio_s = max(each.audio_s for each in self._finished)
                return [Finished(audio_s, sum(each.busy_s for each in self._finished))]
            case Failed():
                self.close()
                return [output]
            case OnChannel():
                raise AssertionError("a slot has one channel")
        return [OnChannel(channel, output)]
