"""What ``stream`` and ``mic`` share: a client from the arguments, audio up, words down, a transcript."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager

from asr.errors import AudioError
from asr.events import SAMPLE_RATE, Event, Final, Partial, Transcript
from clients import streaming
from clients.common import TOKEN_VARIABLE
from clients.concurrency import together
from clients.errors import StreamingError
from clients.pcm import Audio
from clients.presentation import Presentation
from clients.streaming import StreamingClient


def make_client(args: argparse.Namespace, *, sample_rate: int, encoding: str) -> StreamingClient:
    """Return the client that the arguments describe, not yet connected.

    Args:
        args: As :func:`clients.common.add_server_arguments` and ``add_speech_arguments`` have them parsed.
        sample_rate: Of the mono audio that will be sent, in Hz.
        encoding: Of the bytes that will be sent.
    """
    return StreamingClient(
        args.server,
        token=args.token or os.environ.get(TOKEN_VARIABLE) or None,
        sample_rate=sample_rate,
        encoding=encoding,
        language=args.language,
        decoder=args.decoder,
        chunk_ms=args.chunk_ms,
        right_context_ms=args.right_context_ms,
        latency=args.latency,
        second_pass=args.second_pass,
        silence_ms=args.silence_ms,
        prompt=args.prompt,
        hotwords=args.hotwords,
        reconnect_s=args.reconnect_s,
    )


class Heard:
    """The transcript of a stream so far, as a local stream would keep it itself."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._finals: list[Final] = []
        self._open: dict[int, Partial] = {}  # with a second pass a segment may begin before the last is final

    def take(self, event: Event) -> None:
        """Remember an event.

        Args:
            event: The next one.
        """
        if isinstance(event, Final):
            self._finals.append(event)
            self._open.pop(event.segment, None)
        elif isinstance(event, Partial):
            self._open[event.segment] = event

    def transcript(self, duration_s: float) -> Transcript:
        """Return everything final, and of what is not final yet what is committed.

        Args:
            duration_s: Length of the audio.
        """
        finals = list(self._finals)
        for partial in self._open.values():
            if text := partial.committed.strip():
                words = tuple(word for word in partial.words if word.stable)
                start = finals[-1].end if finals else 0
                end = max(partial.time, start)
                finals.append(Final(partial.segment, text, words, start, end, False, partial.time))
        return Transcript(tuple(finals), round(duration_s * SAMPLE_RATE))


async def recognise(
    client: StreamingClient, audio: AsyncGenerator[Audio, None], shown: Presentation, *, sample_rate: int
) -> None:
    """Send audio to its end and show what comes back; if that fails, what is certain so far.

    Args:
        client: Connected.
        audio: What to send; closed at the end.
        shown: Where events and transcript go.
        sample_rate: In Hz.

    Raises:
        StreamingError: The server or the connection failed.
        AudioError: The audio is damaged. What was before it is recognised all the same.
        asyncio.CancelledError: After what is certain has been shown.
    """
    heard, started = Heard(), time.perf_counter()

    def progress(heard_s: float) -> None:
        shown.bar.reach(heard_s, busy_s=time.perf_counter() - started)

    async def show() -> None:
        async for event in client:
            heard.take(event)
            shown.emit([event])
            if isinstance(event, Partial | Final):
                progress(event.time_s)

    try:
        with _notes(shown):
            problem, _ = await together(_send(client, audio, sample_rate, progress), show())
        done = await client.finish()
    except (StreamingError, asyncio.CancelledError, KeyboardInterrupt):
        shown.cut_short(heard.transcript(client.acknowledged.n_samples / sample_rate))
        raise
    shown.bar.reach(done.audio_s, busy_s=done.audio_s * done.real_time_factor)
    transcript = heard.transcript(done.audio_s)
    if problem is None or transcript.text:
        shown.finish(transcript)
    if problem is not None:
        raise problem


async def _send(
    client: StreamingClient,
    audio: AsyncGenerator[Audio, None],
    sample_rate: int,
    progress: Callable[[float], None],
) -> AudioError | None:
    """Send audio to its end; return what was wrong with it, if anything was."""
    queue_s = float(client.ready.limits.get("queue_s", 0.0))
    problem = None
    try:
        try:
            async with aclosing(audio):
                async for block in audio:
                    await client.send(block)
                    # What the server has received it has recognised, but for its queue.
                    progress(client.acknowledged.n_samples / sample_rate - queue_s)
        except AudioError as error:
            problem = error
        await client.finish()
    except StreamingError:
        pass  # the iteration raises it too, after the last event
    return problem


@contextmanager
def _notes(shown: Presentation) -> Iterator[None]:
    """Show what the client logs: a connection that is lost, or back."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.note(record.getMessage())

    handler = Handler(logging.WARNING)
    streaming.logger.addHandler(handler)
    try:
        yield
    finally:
        streaming.logger.removeHandler(handler)
