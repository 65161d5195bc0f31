"""One function for each thing that reads what strangers send: any bytes in, nothing but known errors out.

Hypothesis calls them with data of its own making, atheris with what its coverage suggests
(``python -m tests.fuzz.run_atheris TARGET``), and tests with the files of ``corpus/TARGET``.
"""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from websockets.http11 import Request
from websockets.server import ServerProtocol

from asr.audio import read_audio
from asr.audio_decoders import open_stream_decoder
from asr.errors import AudioError, OptionError
from clients.errors import ServerError
from clients.inbox import Inbox
from service.auth import Tokens, is_allowed_origin
from service.compressed import CompressedIntake
from service.config import ServerConfig
from service.intake import Intake, open_intake
from service.protocol.dialect import BadRequest, Opening
from service.rest import RestApi
from service.rest_audio import audio_blocks
from service.rest_request import RequestError, parse_fields
from service.routes import ROUTES, VOSK, Route
from service.server import Server
from service.stream_settings import AudioFormat
from tests.dialogue import Dialogue
from tests.fake_batcher import FakeBatcher

PATIENCE_S = 20.0
_MAX_FRAMES = 40


def join_frames(frames: Sequence[str | bytes]) -> bytes:
    """Frames as one input: for each a byte for its kind, two for its length, and its content."""
    parts = []
    for frame in frames:
        data = frame.encode() if isinstance(frame, str) else frame
        parts.append(bytes([isinstance(frame, str)]) + len(data).to_bytes(2, "big") + data)
    return b"".join(parts)


def split_frames(data: bytes) -> list[str | bytes]:
    """The inverse of :func:`join_frames`, for any bytes; texts that are not UTF-8 never reach a protocol."""
    frames: list[str | bytes] = []
    file = io.BytesIO(data)
    while (head := file.read(3)) and len(frames) < _MAX_FRAMES:
        content = file.read(int.from_bytes(head[1:], "big"))
        with suppress(UnicodeDecodeError):
            frames.append(content.decode() if head[0] % 2 else content)
    return frames


def talk(route: Route, query: Mapping[str, Sequence[str]], frames: Sequence[str | bytes]) -> None:
    """A client says this; whatever it is, the answers are JSON objects and the close is a valid one."""
    try:
        dialect = route.open_dialect(Opening(query=query, headers={}, languages=("en",), model="fake"))
    except BadRequest as refused:
        assert str(refused)
        return
    dialogue = Dialogue(dialect)
    for frame in frames:
        if dialogue.closed:
            break
        dialogue.send(frame)
    assert all(isinstance(json.loads(text), dict) for text in dialogue.received)
    if dialogue.closed:
        code, reason = dialogue.closed
        assert 1000 <= code < 5000 and len(reason.encode()) <= 123


def _native(data: bytes) -> None:
    talk(ROUTES["/v1/stream"], {}, split_frames(data))


def _openai(data: bytes) -> None:
    talk(ROUTES["/v1/realtime"], {"intent": ["transcription"]}, split_frames(data))


def _deepgram(data: bytes) -> None:
    """The first frame is the address's query."""
    first, *frames = split_frames(data) or [""]
    query = parse_qs(first if isinstance(first, str) else first.decode("latin-1"), keep_blank_values=True)
    talk(ROUTES["/v1/listen"], query, frames)


def _vosk(data: bytes) -> None:
    talk(VOSK, {}, split_frames(data))


def _server_messages(data: bytes) -> None:
    """What a client reads of a server that may be broken."""
    inbox = Inbox()
    for frame in split_frames(data):
        with suppress(ServerError):
            inbox.receive(frame)


def _rest_fields(data: bytes) -> None:
    fields = parse_qs(data.decode("latin-1"), keep_blank_values=True)
    with suppress(RequestError):
        parse_fields(fields, Opening(languages=("en",)))


def _rest_body(data: bytes) -> None:
    """The body of an upload, in pieces whose size the first byte says, at the whole application."""
    size = 1 + 8 * (data[0] if data else 0)
    pieces = [data[start : start + size] for start in range(1, len(data), size)] or [b""]
    status, body = asyncio.run(asyncio.wait_for(_upload_to_server(pieces), PATIENCE_S))
    assert status < 500, body
    assert status == 200 or json.loads(body)["error"]["message"]


async def _upload_to_server(pieces: list[bytes]) -> tuple[int, bytes]:
    server = Server(ServerConfig(port=0))
    server.open_for(FakeBatcher(), model="fake", languages=("en",))
    api = RestApi(server._doorkeeper, lambda: server._hub, allow_origins=(), upload_bytes=1 << 16)
    coming = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    coming.append({"type": "http.request", "body": b"", "more_body": False})
    told: list[Any] = []

    async def receive() -> Any:
        if coming:
            return coming.pop(0)
        await asyncio.sleep(PATIENCE_S)  # the client waits for its answer

    async def send(message: Any) -> None:
        told.append(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=b"), (b"host", b"x")]
    scope = {"type": "http", "method": "POST", "path": "/v1/audio/transcriptions", "headers": headers}
    await api.app(scope | {"query_string": b"", "http_version": "1.1"}, receive, send)
    return told[0]["status"], b"".join(each.get("body", b"") for each in told[1:])


class _Socket:
    """What a handshake leaves behind."""

    key, place, dialect = "", None, None

    def limit_messages(self, n_bytes: int) -> None:
        assert n_bytes > 0


def _handshake(data: bytes) -> None:
    """The head of a request, as websockets reads it; a place is taken only with a dialect to speak."""
    protocol = ServerProtocol()
    protocol.receive_data(data)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"alpha\n")
        file.flush()
        path = Path(file.name)
        server = Server(ServerConfig(port=0, token_file=path, operator_token_file=path))
    server.open_for(FakeBatcher(), model="fake", languages=("en",))
    for request in protocol.events_received():
        assert isinstance(request, Request)
        for answer in (server._process_request, server._process_vosk_request):
            socket: Any = _Socket()
            response = answer(socket, request)
            if response is None:
                assert socket.dialect and socket.key and socket.place
            else:
                assert 200 <= response.status_code < 504 and socket.place is None


def _tokens(data: bytes) -> None:
    """A token file of any bytes, asked for some of its own."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(OptionError):
            Tokens(Path(file.name)).key_of([data.decode("latin-1"), "", data[:3].hex()])
    text = data.decode("latin-1")
    is_allowed_origin(text, host=text[::-1], allowed=("https://a.b",))


def _pull_all(intake: Intake) -> None:
    """Take everything, as the batcher does."""
    give_up_at = time.monotonic() + PATIENCE_S
    try:
        while not intake.is_drained():
            samples = intake.pull()
            assert samples.dtype == np.float32 and samples.ndim == 1
            if not len(samples):
                assert time.monotonic() < give_up_at, "the decoder does not come to an end"
                time.sleep(0.0005)
    finally:
        intake.close()


def _compressed(encoding: str) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        """In pieces, whose size the first byte says."""
        crashes: list[BaseException | None] = []
        hook, threading.excepthook = threading.excepthook, lambda crash: crashes.append(crash.exc_value)
        intake = CompressedIntake(encoding, on_samples=lambda: None)
        try:
            size = 1 + 16 * (data[0] if data else 0)
            for start in range(1, len(data), size):
                intake.push(data[start : start + size])
            intake.end()
            with suppress(AudioError):
                _pull_all(intake)
            intake._thread.join(PATIENCE_S)
        finally:
            threading.excepthook = hook
        assert not intake._thread.is_alive(), "the decoder's thread stays behind"
        assert not crashes, crashes

    return target


def _plain(data: bytes) -> None:
    encodings = ("pcm_s16le", "pcm_f32le", "mulaw", "alaw")
    rates = (8_000, 16_000, 44_100, 48_000)
    kind = data[0] if data else 0
    audio = AudioFormat(encodings[kind % 4], rates[kind // 4 % 4], 1 + kind // 16 % 3)
    intake = open_intake(audio, on_samples=lambda: None)
    assert audio.bytes_per_frame
    n_whole = (len(data) - 1) // audio.bytes_per_frame * audio.bytes_per_frame
    intake.push(data[1 : 1 + n_whole])
    intake.end()
    with suppress(AudioError):
        _pull_all(intake)


def _upload(data: bytes) -> None:
    with suppress(AudioError):
        for block in audio_blocks(io.BytesIO(data)):
            assert np.isfinite(block).all() and block.ndim == 1


def _file(data: bytes) -> None:
    """A file on the command line."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        file.write(data)
        file.flush()
        with suppress(AudioError), read_audio(file.name) as source:
            for block in source.blocks(0.5):
                assert block.dtype == np.float32


def _standard_input(data: bytes) -> None:
    """WAV or raw PCM in a pipe."""
    with suppress(AudioError):
        decoder = open_stream_decoder(io.BytesIO(data), sample_rate=16_000, channels=1, name="stdin")
        while len(decoder.read(4096)):
            pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "native": _native,
    "openai": _openai,
    "deepgram": _deepgram,
    "vosk": _vosk,
    "server_messages": _server_messages,
    "rest_fields": _rest_fields,
    "rest_body": _rest_body,
    "handshake": _handshake,
    "tokens": _tokens,
    "plain": _plain,
    "flac": _compressed("flac"),
    "ogg_opus": _compressed("ogg_opus"),
    "opus": _compressed("opus"),
    "container": _compressed("container"),
    "upload": _upload,
    "file": _file,
    "standard_input": _standard_input,
}
