"""One recording through the batcher: a stream like any other, only that its audio is there already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from asr.errors import AudioError
from asr.events import SAMPLE_RATE
from service.live import BatcherLike, SlotLike
from service.stream_settings import AudioFormat, Failed, Finished, Output, StreamSettings

Blocks = Iterator[NDArray[np.float32]]

_FORMAT = AudioFormat("pcm_f32le", SAMPLE_RATE)
_PIECE = SAMPLE_RATE  # samples that are decoded and fed at a time


async def recognize(
    batcher: BatcherLike, blocks: Blocks, settings: StreamSettings, *, queue_s: float
) -> AsyncGenerator[Output, None]:
    """Recognise a recording.

    Args:
        batcher: Where.
        blocks: Its samples, mono at 16 kHz; iterated in a thread.
        settings: How.
        queue_s: Audio that may wait for the model.

    Yields:
        What the stream gives; a ``Finished`` is the last.

    Raises:
        AudioError: The recording cannot be decoded.
        OptionError: The model refuses a setting.
    """
    outputs: asyncio.Queue[Sequence[Output]] = asyncio.Queue()
    has_room = asyncio.Event()

    def deliver(batch: Sequence[Output]) -> None:
        outputs.put_nowait(batch)
        has_room.set()

    slot = await batcher.open(_FORMAT, settings, deliver)
    feeder = asyncio.create_task(_feed(slot, blocks, queue_s=queue_s, has_room=has_room))
    feeder.add_done_callback(lambda _: outputs.put_nowait(()))
    try:
        while True:
            batch = await outputs.get()
            if feeder.done():
                feeder.result()  # raises what went wrong
            for output in batch:
                if isinstance(output, Failed):
                    raise output.error
                yield output
                if isinstance(output, Finished):
                    return
    finally:
        slot.close()
        feeder.cancel()
        with suppress(asyncio.CancelledError, AudioError):
            await feeder


async def _feed(slot: SlotLike, blocks: Blocks, *, queue_s: float, has_room: asyncio.Event) -> None:
    while len(piece := await asyncio.to_thread(_next_piece, blocks)):
        slot.feed(piece.astype("<f4").tobytes())
        while slot.queued_s > queue_s:
            has_room.clear()
            await has_room.wait()
    slot.finish()


def _next_piece(blocks: Blocks) -> NDArray[np.float32]:
    """About a second of samples; none at the end."""
    found: list[NDArray[np.float32]] = []
    n_samples = 0
    while n_samples < _PIECE and (block := next(blocks, None)) is not None:
        found.append(block)
        n_samples += len(block)
    return np.concatenate(found) if found else np.zeros(0, np.float32)
