"""A client of the streaming service: audio goes in, typed events come out, lost connections are resumed.

Where a restarted server has lost the stream, another one goes on from the last word that was for good.

A task of its own keeps the connection: it reads messages, sends what is in the outbox, and opens the
connection again when it breaks. The public methods only fill the outbox, take events, and wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from asr.events import SAMPLE_RATE, Event, Final, Partial
from clients.concurrency import together
from clients.connection import Server, closing_error
from clients.errors import ConnectionLostError, ServerError, StreamingError, UnreachableError
from clients.inbox import Inbox
from clients.messages import Acknowledged, Done, Flushed, Ready, start_message
from clients.outbox import Outbox
from clients.pcm import Audio, AudioEncoder

_FLUSH, _STOP = json.dumps({"type": "flush"}), json.dumps({"type": "stop"})
_MESSAGE_BYTES = 8192
_IN_FLIGHT_S = 5.0  # audio sent and not acknowledged; acknowledgements come about once per second
_MAX_DELAY_S = 3.0  # between two attempts to connect again
_PAST_S = 60.0  # audio acknowledged, yet without words for good, that is kept for another stream

logger = logging.getLogger(__name__)


class StreamingClient:
    """One stream to a foresound server, used in an ``async with`` statement and iterated for its events.

    Events are those of :mod:`asr.events`, in order, each once, whatever happens to the connection.
    Iteration ends after :meth:`finish`. Drafts that nobody reads for long are replaced by newer ones;
    nothing else is ever dropped. Sending and iterating may happen in one task or in two.

    When the connection is lost, the client opens it again and goes on where the server stopped hearing.
    If the server does not know the stream any more, since it was killed or ``resume_s`` are over, the client
    makes what was committed a final, begins another stream and says again what followed; times and segments
    go on. That takes a plain encoding, not FLAC or Opus, and ``words``, without which it has no times and
    begins again after the last final.

    If it cannot go on, or the server ends the stream, what was received is still iterated; then the
    iteration raises, as does every method from that moment on. A message that the server refuses without
    ending the stream raises as well: this client sends nothing that a server may refuse, so it is a mistake
    that must not go unseen.

    Attributes:
        ready: The server's answer to the start, with its limits and the settings in effect.
        acknowledged: What the server is known to have received.
        n_restarts: How often the server had lost the stream.
    """

    ready: Ready

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        sample_rate: int = 16_000,
        encoding: str = "pcm_s16le",
        channels: int = 1,
        decoder: str | None = None,
        language: str | None = None,
        chunk_ms: int | None = None,
        right_context_ms: int | None = None,
        latency: str | float | None = None,
        beam_size: int | None = None,
        interim: bool = True,
        words: bool = True,
        second_pass: bool = False,
        silence_ms: int | None = None,
        max_segment_s: float | None = None,
        prompt: str | None = None,
        hotwords: Sequence[str] = (),
        ssl_context: ssl.SSLContext | None = None,
        connect_s: float = 10.0,
        reconnect_s: float = 30.0,
        restart: bool = True,
        max_buffered_s: float = 30.0,
        first_delay_s: float = 0.1,
    ) -> None:
        """Describe a stream; None leaves a setting to the server.

        Args:
            url: ws, wss, http or https; the path is /v1/stream where none is given.
            token: The server's access token, if it wants one.
            sample_rate: In Hz, 8000 to 48000.
            encoding: pcm_s16le, pcm_f32le, mulaw, alaw, flac or ogg_opus.
            channels: Interleaved channels, 1 to 8; the server averages them.
            decoder: whisper or transducer.
            language: Language code.
            chunk_ms: Chunk size, 40 to 1000 in steps of 20.
            right_context_ms: Audio after a frame before it is final, 0 to 960 in steps of 20.
            latency: minimal, low, medium or high, instead of ``chunk_ms``; with the transducer also how far
                it looks ahead, by name or as a number of ms.
            beam_size: 1 is greedy.
            interim: Send partials.
            words: Give events their words with times and confidences.
            second_pass: Decode finished segments once more with offline Whisper.
            silence_ms: Pause that ends a segment.
            max_segment_s: Longest segment.
            prompt: Text before the speech.
            hotwords: Words to expect.
            ssl_context: For wss with certificates that the system does not trust.
            connect_s: Time for one attempt to connect.
            reconnect_s: Time after which a lost connection is given up.
            restart: Begin another stream where the server has lost this one, instead of raising.
            max_buffered_s: Audio kept for a new connection; :meth:`send` waits beyond that.
            first_delay_s: Pause before the first attempt to connect again; doubled for each further one.

        Raises:
            OptionError: The URL or the token cannot be used.
        """
        self._server = Server(url, token=token, ssl_context=ssl_context)
        self._encoder = AudioEncoder(encoding, sample_rate=sample_rate, channels=channels)
        self._start = start_message(
            sample_rate=sample_rate,
            encoding=encoding,
            channels=channels,
            interim=interim,
            words=words,
            second_pass=second_pass,
            hotwords=hotwords,
            silence_ms=silence_ms,
            max_segment_s=max_segment_s,
            decoder=decoder,
            language=language,
            chunk_ms=chunk_ms,
            right_context_ms=right_context_ms,
            latency=latency,
            beam_size=beam_size,
            prompt=prompt,
        )
        self._connect_s, self._reconnect_s, self._first_delay_s = connect_s, reconnect_s, first_delay_s
        self._max_kept = round(max_buffered_s * self._encoder.bytes_per_s)
        self._restart = restart and self._encoder.is_plain
        self._outbox = Outbox(
            window_bytes=round(_IN_FLIGHT_S * self._encoder.bytes_per_s),
            past_bytes=round(_PAST_S * self._encoder.bytes_per_s) if self._restart else 0,
        )
        self._inbox = Inbox()
        self._origin_bytes = 0  # audio before the stream that the server knows
        self.n_restarts = 0
        self._max_frame = _MESSAGE_BYTES
        self.acknowledged = Acknowledged(0, 0)
        self._n_flushes = self._n_flushed = 0
        self._flushed: Flushed | None = None
        self._stopping = False
        self._done: Done | None = None
        self._failure: Exception | None = None  # raised to whoever calls
        self._changed = asyncio.Event()  # replaced whenever it is set, see _wake
        self._task: asyncio.Task[None] | None = None
        self._is_open = False

    async def __aenter__(self) -> StreamingClient:
        """Connect and start the stream.

        Returns:
            Itself, with ``ready`` set.

        Raises:
            UnreachableError: Nothing answers.
            ServerError: The server refuses.
        """
        if self._task is not None:
            raise StreamingError("a client is one stream; make another one for the next")
        self._websocket = await self._open(self._connect_s)
        self._max_frame = min(_MESSAGE_BYTES, int(self.ready.limits.get("message_bytes", _MESSAGE_BYTES)))
        self._is_open = True
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection; without :meth:`finish` before, the rest is given up."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._shut()  # the task may not even have begun

    def __aiter__(self) -> StreamingClient:
        """Return itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            StopAsyncIteration: The stream is done.
            StreamingError: It failed; what was received before has been returned.
        """
        while not self._inbox.events:
            if self._failure is not None:
                raise self._failure
            if self._done is not None or not self._is_open:
                raise StopAsyncIteration
            await self._changed.wait()
        return self._inbox.events.popleft()

    async def send(self, audio: Audio) -> None:
        """Send audio; wait while too much of it is not acknowledged.

        Args:
            audio: Bytes in the stream's encoding, or int16 or float samples in [-1, 1] as an array of
                shape [n_samples], or [n_samples, channels] where there are several channels.

        Raises:
            StreamingError: The stream failed.
            AudioError: The samples or the number of bytes cannot be used.
        """
        self._check_sending()
        for frame in self._encoder.frames(audio, max_bytes=self._max_frame):
            await self._wait_for(lambda: self._outbox.n_kept < self._max_kept)
            self._outbox.add(frame)
            self._wake()

    async def flush(self) -> Flushed:
        """Have everything sent so far recognised and made final; the stream stays open.

        Returns:
            The answer; the finals before it can be iterated.

        Raises:
            StreamingError: The stream failed.
        """
        self._check_sending()
        self._n_flushes += 1
        number = self._n_flushes
        self._outbox.add(_FLUSH)
        self._wake()
        await self._wait_for(lambda: self._n_flushed >= number)
        assert self._flushed is not None
        return self._flushed

    async def finish(self) -> Done:
        """End the audio and wait until the rest is recognised.

        Returns:
            How much was heard; the events before it can still be iterated.

        Raises:
            StreamingError: The stream failed.
        """
        if not self._stopping:
            self._stopping = True
            self._outbox.add(_STOP)
            self._wake()
        await self._wait_for(lambda: self._done is not None)
        assert self._done is not None
        return self._done

    def _wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._check_open()
            await self._changed.wait()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if not self._is_open:
            raise StreamingError("the client is not connected; use it inside its 'async with' statement")

    def _check_sending(self) -> None:
        if self._stopping and self._failure is None:
            raise StreamingError("the stream is finished; open another client for more audio")
        self._check_open()

    async def _shut(self) -> None:
        self._is_open = False
        self._wake()
        await self._websocket.close()

    async def _open(self, timeout_s: float) -> ClientConnection:
        """Start, resume, or start again on a new connection."""
        if self._task is None:
            websocket, self.ready = await self._server.connect(self._start, timeout_s=timeout_s)
            return websocket
        resume = {"resume_token": self.ready.resume_token, "last_seq": self._inbox.last_seq}
        try:
            websocket, ready = await self._server.connect(self._start | resume, timeout_s=timeout_s)
        except ServerError as error:
            if not self._restart or error.code != "unknown_resume_token":
                raise
            websocket, self.ready = await self._server.connect(self._start, timeout_s=timeout_s)
            self._start_again()
            return websocket
        try:
            if not ready.resumed:
                raise ValueError("the server started another one instead")
            self._outbox.rewind(ready.n_bytes)
        except ValueError as error:
            await websocket.close()
            raise ServerError(f"the stream could not be resumed: {error}", code="not_resumed") from error
        self.ready = ready
        self._acknowledge(Acknowledged(ready.n_samples, ready.n_bytes))
        return websocket

    def _start_again(self) -> None:
        """Go on in a stream that has heard nothing yet."""
        self._inbox.settle()
        wanted = self._encoder.bytes_before(self._inbox.settled / SAMPLE_RATE) - self._origin_bytes
        first = self._outbox.start_again(wanted)
        self._origin_bytes += first
        origin_s = self._origin_bytes / self._encoder.bytes_per_s
        self._inbox.start_again(round(origin_s * SAMPLE_RATE))
        self._acknowledge(Acknowledged(0, 0))
        self.n_restarts += 1
        missing_s = max(0, first - wanted) / self._encoder.bytes_per_s
        logger.warning(
            "%s has lost the stream, perhaps it was restarted; another one goes on at %.1f s%s",
            self._server,
            origin_s,
            f", and {missing_s:.1f} s before it are lost" if missing_s else "",
        )

    def _acknowledge(self, received: Acknowledged) -> None:
        """Note what the server has, counted from the first stream's beginning."""
        n_samples = received.n_samples + self._encoder.samples_in(self._origin_bytes)
        self.acknowledged = Acknowledged(n_samples, received.n_bytes + self._origin_bytes)

    async def _run(self) -> None:
        """Keep the stream until it is done, fails for good or is cancelled."""
        try:
            while True:
                try:
                    await together(self._read(), self._write())
                except ConnectionClosed as closed:
                    if self._done is not None:
                        return
                    ended = closing_error(closed)
                    if ended is not None:
                        raise ended from closed
                    self._websocket = await self._reopen()
        except Exception as error:  # raised to whoever calls
            self._failure = error
        finally:
            await self._shut()

    async def _reopen(self) -> ClientConnection:
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + self._reconnect_s
        delay_s = self._first_delay_s
        logger.warning("the connection to %s is lost; trying to get it back", self._server)
        while True:
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
            try:
                websocket = await self._open(min(self._connect_s, max(1.0, give_up_at - clock())))
            except (UnreachableError, ServerError) as error:
                if isinstance(error, ServerError) and not error.code.startswith("http_5"):
                    raise
                if clock() >= give_up_at:
                    raise ConnectionLostError(
                        f"the connection to {self._server} was lost and did not come back within "
                        f"{self._reconnect_s:g} s; the last attempt: {error}"
                    ) from error
            else:
                logger.warning("the connection to %s is back", self._server)
                return websocket
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    async def _read(self) -> None:
        """Handle messages until the connection closes, which raises."""
        refusal: ServerError | None = None  # told before the last finals; raised after them
        while True:
            try:
                message = self._inbox.receive(await self._websocket.recv())
            except ConnectionClosed:
                if refusal is not None:
                    raise refusal from None
                raise
            match message:
                case Acknowledged():
                    self._confirm(message)
                case Final() | Partial():
                    settled_s = self._inbox.settled / SAMPLE_RATE
                    self._outbox.forget(self._encoder.bytes_before(settled_s) - self._origin_bytes)
                case Flushed():
                    self._flushed = Flushed(message.n_samples + self._encoder.samples_in(self._origin_bytes))
                    # A flush that is repeated on a new connection may be answered twice.
                    self._n_flushed = min(self._n_flushed + 1, self._n_flushes)
                    self._outbox.answered(_FLUSH)
                case Done() if self._is_complete(message):
                    before_s = self._origin_bytes / self._encoder.bytes_per_s
                    self._done = replace(message, audio_s=message.audio_s + before_s)
                case Done():
                    refusal = refusal or ServerError(
                        f"the server ended the stream after {message.audio_s:.1f} s of audio "
                        f"(reason: {message.reason}); open another one for the rest",
                        code=message.reason,
                    )
                case ServerError() if message.fatal:
                    refusal = message
                case ServerError() if not self._stopping:  # a repeated stop may be refused
                    raise message
            self._wake()

    def _confirm(self, acknowledged: Acknowledged) -> None:
        try:
            self._outbox.confirm(acknowledged.n_bytes)
        except ValueError as error:
            raise ServerError(f"the server broke the protocol: {error}", code="bad_message") from error
        self._acknowledge(acknowledged)

    def _is_complete(self, done: Done) -> bool:
        return done.reason == "stop" or (self._stopping and not self._outbox.n_kept)

    async def _write(self) -> None:
        """Send what is in the outbox, as it comes."""
        try:
            while True:
                frame = self._outbox.take()
                if frame is None:
                    await self._changed.wait()
                else:
                    await self._websocket.send(frame)
        except ConnectionClosed:
            return  # the reader sees it too, after the last message
