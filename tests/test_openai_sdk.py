"""OpenAI's own SDKs against a real server, unchanged but for the address."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests import node
from tests.serving import in_loop, serving

openai = pytest.importorskip("openai", reason="needs openai")

from openai import AsyncOpenAI, OpenAI  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402

RATE = 24_000
MANUAL = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
TRANSCRIPTION = {"intent": "transcription"}


def client(server: Server, *, key: str = "x") -> AsyncOpenAI:
    return AsyncOpenAI(api_key=key, base_url=f"http://127.0.0.1:{server.port}/v1")


def encoded(seconds: float) -> str:
    return base64.b64encode(bytes(int(seconds * RATE) * 2)).decode()


async def until(connection: Any, kind: str) -> list[Any]:
    """Events up to one of a type."""
    events = []
    while not events or not events[-1].type.endswith(kind):
        events.append(await connection.recv())
        assert events[-1].type != "error", events[-1]
    return events


@asynccontextmanager
async def connected(**query: str) -> AsyncIterator[Any]:
    """A connection to a server of its own."""
    extra = query or TRANSCRIPTION
    async with serving() as server, client(server).realtime.connect(extra_query=extra) as connection:
        yield connection


@in_loop
async def test_python_commits() -> None:
    """Without turn detection: typed events, extra fields, one item a commit."""
    async with connected() as connection:
        created = await connection.recv()
        assert type(created).__name__ == "SessionCreatedEvent"
        assert type(created.session).__name__ == "RealtimeTranscriptionSessionCreateRequest"
        transcription = {"model": "gpt-4o-transcribe", "language": "en", "delay": "low"}
        session = {"type": "transcription", "audio": {"input": {"transcription": transcription}}}
        session["audio"]["input"]["turn_detection"] = None  # type: ignore[index]
        await connection.session.update(session=session)  # type: ignore[arg-type]
        updated = await connection.recv()
        assert updated.session.audio.input.transcription.delay == "low"
        assert updated.session.audio.input.turn_detection is None
        await connection.input_audio_buffer.append(audio=encoded(0.5))
        (*_, delta) = await until(connection, "delta")
        assert type(delta).__name__ == "ConversationItemInputAudioTranscriptionDeltaEvent"
        assert delta.words[0] == {
            "word": "w0",
            "start": 0.0,
            "end": 0.25,
            "confidence": 0.9,
            "stable": True,
        }
        await connection.input_audio_buffer.commit()
        events = await until(connection, "completed")
        names = [type(event).__name__ for event in events if not event.type.endswith("delta")]
        assert names == [
            "InputAudioBufferCommittedEvent",
            "ConversationItemAdded",
            "ConversationItemDone",
            "ConversationItemInputAudioTranscriptionCompletedEvent",
        ]
        deltas = [delta.delta, *(event.delta for event in events if event.type.endswith("delta"))]
        completed = events[-1]
        assert completed.transcript == "".join(deltas) == "w0 w1"
        assert (completed.usage.type, completed.usage.seconds) == ("duration", 0.5)
        assert [word["word"] for word in completed.words] == ["w0", "w1"]


@in_loop
async def test_python_turn_detection() -> None:
    """With turn detection nobody commits: the server makes the items."""
    async with connected(model="gpt-4o-transcribe") as connection:
        await connection.input_audio_buffer.append(audio=encoded(1))
        events = await until(connection, "completed")
        assert [type(event).__name__ for event in events if "audio_buffer" in event.type] == [
            "InputAudioBufferSpeechStartedEvent",
            "InputAudioBufferSpeechStoppedEvent",
            "InputAudioBufferCommittedEvent",
        ]
        assert events[-1].transcript == "w0 w1 w2 w3"
        await connection.input_audio_buffer.clear()
        assert type(await connection.recv()).__name__ == "InputAudioBufferClearedEvent"


@in_loop
async def test_python_errors() -> None:
    """An error is an event of its own with the client's event; the connection stays."""
    async with connected() as connection:
        await connection.recv()
        await connection.input_audio_buffer.commit(event_id="mine")
        error = await connection.recv()
        assert type(error).__name__ == "RealtimeErrorEvent"
        assert (error.error.code, error.error.event_id) == ("input_audio_buffer_commit_empty", "mine")
        await connection.input_audio_buffer.append(audio=encoded(0.25))
        await until(connection, "delta")


@in_loop
async def test_python_keys(tmp_path: Path) -> None:
    """The SDK's api_key is a token of the server; a wrong one is HTTP 401."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    async with serving(token_file=tokens) as server:
        with pytest.raises(InvalidStatus) as caught:
            async with client(server, key="wrong").realtime.connect(extra_query=TRANSCRIPTION):
                pass
        assert caught.value.response.status_code == 401
        async with client(server, key="secret").realtime.connect(extra_query=TRANSCRIPTION) as connection:
            assert (await connection.recv()).type == "session.created"


@in_loop
async def test_python_beta() -> None:
    """The beta client of the same SDK: other settings, other events."""
    async with serving() as server:
        url = f"ws://127.0.0.1:{server.port}/v1"  # the beta client would make it wss
        beta = AsyncOpenAI(api_key="x", websocket_base_url=url).beta.realtime
        async with beta.connect(model="whisper-1", extra_query=TRANSCRIPTION) as connection:
            assert (await connection.recv()).type == "session.created"
            await connection.transcription_session.update(
                session={"input_audio_format": "pcm16", "turn_detection": None}  # type: ignore[typeddict-item]
            )
            updated = await connection.recv()
            assert type(updated).__name__ == "TranscriptionSessionUpdatedEvent"
            assert updated.session.input_audio_format == "pcm16"
            await connection.input_audio_buffer.append(audio=encoded(0.5))
            await connection.input_audio_buffer.commit()
            events = await until(connection, "completed")
            assert "ConversationItemCreatedEvent" in [type(event).__name__ for event in events]
            assert events[-1].transcript == "w0 w1"


@in_loop
async def test_python_without_asyncio() -> None:
    """The synchronous client, in a thread of its own."""

    def speak(port: int) -> str:
        sdk = OpenAI(api_key="x", base_url=f"http://127.0.0.1:{port}/v1")
        with sdk.realtime.connect(extra_query=TRANSCRIPTION) as connection:
            connection.input_audio_buffer.append(audio=encoded(1))
            for event in connection:
                if event.type == "conversation.item.input_audio_transcription.completed":
                    return event.transcript
        return ""

    async with serving() as server:
        assert await asyncio.to_thread(speak, server.port) == "w0 w1 w2 w3"


NODE = """
const {OpenAI} = require("openai");
const {OpenAIRealtimeWS} = require("openai/realtime/ws");
const [port, key] = process.argv.slice(-2);
const client = new OpenAI({apiKey: key, baseURL: `https://localhost:${port}/v1`});
const rt = new OpenAIRealtimeWS({model: "gpt-4o-transcribe", options: {rejectUnauthorized: false}}, client);
const say = (event) => console.log(JSON.stringify(event));
rt.on("session.created", () => {
  rt.send({type: "session.update", session: {type: "transcription", audio: {input: {turn_detection: null}}}});
  rt.send({type: "input_audio_buffer.append", audio: Buffer.alloc(24000).toString("base64")});
  rt.send({type: "input_audio_buffer.commit"});
});
rt.on("conversation.item.input_audio_transcription.delta", say);
rt.on("conversation.item.input_audio_transcription.completed", (event) => { say(event); rt.close(); });
rt.on("error", (error) => { say({type: "failed", message: String(error)}); rt.close(); });
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_node(tmp_path: Path) -> None:
    """The Node SDK, which insists on TLS: a certificate of our own."""
    modules = node.modules(*node.OPENAI)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} "
        f"-out {cert} -days 2 -subj /CN=localhost"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")

    @in_loop
    async def talk() -> None:
        async with serving(tls_cert=cert, tls_key=key, token_file=tokens) as server:
            *deltas, completed = await node.run(NODE, str(server.port), "secret", modules=modules)
            assert "".join(event["delta"] for event in deltas) == completed["transcript"] == "w0 w1"
            assert completed["words"][1]["word"] == "w1"
            (failed,) = await node.run(NODE, str(server.port), "wrong", modules=modules)
            assert "401" in failed["message"]

    talk()


NODE_REST = """
const {OpenAI, toFile} = require("openai");
const [baseURL, path] = process.argv.slice(-2);
const client = new OpenAI({apiKey: "x", baseURL});
const say = (value) => console.log(JSON.stringify(value));
(async () => {
  const file = () => toFile(require("fs").createReadStream(path), "speech.wav");
  for await (const model of client.models.list()) say(model);
  say(await client.audio.transcriptions.create({file: await file(), model: "whisper-1"}));
  const asked = {file: await file(), model: "gpt-4o-transcribe", stream: true};
  const stream = await client.audio.transcriptions.create(asked);
  for await (const event of stream) say(event);
})();
"""


@pytest.mark.slow
def test_node_rest(tmp_path: Path) -> None:
    """The same SDK's requests: models, a transcription, a stream of events."""
    modules = node.modules(*node.OPENAI)
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.zeros(8000), 16_000)

    @in_loop
    async def talk() -> None:
        async with serving(rest_port=0) as server:
            model, whole, *deltas, done = await node.run(
                NODE_REST, str(server.rest_url), str(path), modules=modules
            )
        assert (model["id"], whole["text"]) == ("fake", "w0 w1")
        assert "".join(event["delta"] for event in deltas) == done["text"] == "w0 w1"

    talk()


@pytest.mark.slow
def test_real_speech(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Eleven seconds at 24 kHz through the SDK and the real model: deltas before the rest is sent."""
    samples = soxr.resample(jfk, 16_000, RATE)
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    first, rest = pcm[: 6 * RATE * 2], pcm[6 * RATE * 2 :]

    async def talk() -> tuple[list[str], Any]:
        config = ServerConfig(port=0, limits=Limits(max_streams=1))
        async with Server(config) as server, Batcher(recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model=recognizer.name, languages=recognizer.languages)
            async with client(server).realtime.connect(extra_query=TRANSCRIPTION) as connection:
                await connection.session.update(session=MANUAL)  # type: ignore[arg-type]

                await connection.input_audio_buffer.append(audio=base64.b64encode(first).decode())
                events = await until(connection, "delta")
                await connection.input_audio_buffer.append(audio=base64.b64encode(rest).decode())
                await connection.input_audio_buffer.commit()
                events += await until(connection, "completed")
            await server.close()
        deltas = [event.delta for event in events if event.type.endswith("delta")]
        return deltas, events[-1]

    deltas, completed = asyncio.run(asyncio.wait_for(talk(), 120))
    assert "".join(deltas) == completed.transcript
    assert "what you can do for your country" in completed.transcript.lower()
    assert all(0 < word["confidence"] <= 1 for word in completed.words)
    assert completed.words[-1]["end"] <= 11.1 and completed.usage.seconds == pytest.approx(11, abs=0.1)
