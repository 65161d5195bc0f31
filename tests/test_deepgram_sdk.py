"""Deepgram's own SDKs against a real server, unchanged but for the address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.server import Server
from tests import node
from tests.fake_batcher import QUIET, expected_texts
from tests.serving import BYTES_PER_S, in_loop, serving

deepgram = pytest.importorskip("deepgram", reason="needs deepgram-sdk")

from deepgram import AsyncDeepgramClient, DeepgramClient  # noqa: E402
from deepgram.core.api_error import ApiError  # noqa: E402
from deepgram.environment import DeepgramClientEnvironment  # noqa: E402
from deepgram.listen.v1.types import (  # noqa: E402
    ListenV1Configure,
    ListenV1ConfigureSuccess,
    ListenV1Error,
    ListenV1Metadata,
    ListenV1Results,
    ListenV1SpeechStarted,
    ListenV1UtteranceEnd,
)
from websockets.exceptions import ConnectionClosed  # noqa: E402

AUDIO = {"model": "nova-3", "encoding": "linear16", "sample_rate": 16000}
BLOCK = BYTES_PER_S // 10


def environment(server: Server) -> DeepgramClientEnvironment:
    url = f"127.0.0.1:{server.port}"
    return DeepgramClientEnvironment(
        base=f"http://{url}", production=f"ws://{url}", agent=f"ws://{url}", agent_rest=f"http://{url}"
    )


@asynccontextmanager
async def connected(server: Server, *, key: str = "k", **options: Any) -> AsyncIterator[Any]:
    client = AsyncDeepgramClient(api_key=key, environment=environment(server))
    async with client.listen.v1.connect(**{**AUDIO, **options}) as connection:
        yield connection


async def speak(connection: Any, seconds: float) -> None:
    data = bytes(int(seconds * 16_000) * 2)
    for start in range(0, len(data), BLOCK):
        await connection.send_media(data[start : start + BLOCK])


async def be_quiet(connection: Any, seconds: float) -> None:
    n_bytes = int(seconds * 16_000) * 2
    await connection.send_media((QUIET + bytes(n_bytes))[:n_bytes])


async def rest(connection: Any) -> tuple[list[Any], int, str]:
    """What comes until the connection is closed, and how it is."""
    messages = []
    try:
        while True:
            messages.append(await connection.recv())
    except ConnectionClosed as error:
        assert error.rcvd is not None
        return messages, error.rcvd.code, error.rcvd.reason


async def until(connection: Any, kind: type) -> Any:
    while not isinstance(message := await connection.recv(), kind):
        pass
    return message


def text(result: Any) -> str:
    return result.channel.alternatives[0].transcript


def finals(messages: list[Any]) -> list[str]:
    return [text(each) for each in messages if isinstance(each, ListenV1Results) and each.is_final]


@in_loop
async def test_results_speech_started_utterance_end_and_metadata() -> None:
    """All messages arrive as the SDK's own types, typed fields filled."""
    async with serving() as server:
        options = {"interim_results": True, "vad_events": True, "utterance_end_ms": 1000, "punctuate": True}
        async with connected(server, **options) as connection:
            await connection.send_keep_alive()
            await speak(connection, 1.25)
            await be_quiet(connection, 1.5)
            await speak(connection, 0.5)
            await connection.send_close_stream()
            messages, code, _ = await rest(connection)
    assert code == 1000
    assert finals(messages) == ["w0 w1 w2 w3", "w4", "w11 w12"]
    interim = [each for each in messages if isinstance(each, ListenV1Results) and not each.is_final]
    assert text(interim[0]) == "w0 d" and interim[0].start == 0
    first = next(each for each in messages if isinstance(each, ListenV1Results) and each.is_final)
    assert (first.channel_index, first.start, first.duration) == ([0, 1], 0, 1)
    word = first.channel.alternatives[0].words[1]
    assert (word.word, word.punctuated_word, word.start, word.end, word.confidence) == (
        "w1",
        "w1",
        0.25,
        0.5,
        0.9,
    )
    assert first.metadata.model_info.name == "fake"
    started = [each for each in messages if isinstance(each, ListenV1SpeechStarted)]
    assert [each.timestamp for each in started] == [0, 2.75]
    (ended,) = [each for each in messages if isinstance(each, ListenV1UtteranceEnd)]
    assert ended.last_word_end == 1.25
    assert isinstance(messages[-1], ListenV1Metadata)
    assert messages[-1].request_id == first.metadata.request_id
    assert (messages[-1].duration, messages[-1].channels) == (3.25, 1)


@in_loop
async def test_finalize_keeps_the_stream_open() -> None:
    """Finalize is answered at once, again and again."""
    async with serving() as server, connected(server) as connection:
        for expected in ("w0 w1", "w2 w3"):
            await speak(connection, 0.5)
            await connection.send_finalize()
            result = await until(connection, ListenV1Results)
            assert (text(result), result.is_final, result.from_finalize) == (expected, True, True)
        await connection.send_close_stream()
        messages, code, _ = await rest(connection)
        assert [type(each) for each in messages] == [ListenV1Metadata] and code == 1000


@in_loop
async def test_configure_keyterms() -> None:
    """The newest SDK changes keyterms in mid-stream; what the stream is opened with are the SDK's."""
    async with serving() as server:
        async with connected(server, keyterm=["one", "two words"]) as connection:
            await speak(connection, 0.5)
            await connection.send_configure(ListenV1Configure(type="Configure", keyterms=["three"]))
            done = await until(connection, ListenV1ConfigureSuccess)
            assert done.keyterms == ["three"]
            await speak(connection, 0.5)
            await connection.send_close_stream()
            messages, code, _ = await rest(connection)
            assert finals(messages) == ["w0 w1"] and code == 1000
        batcher = server._hub.batcher  # type: ignore[union-attr]
        hotwords = [settings.hotwords for _, settings in batcher.opened]  # type: ignore[attr-defined]
        assert hotwords == [("one", "two words"), ("three",)]


@in_loop
async def test_events_of_the_listening_loop() -> None:
    """The SDK's own loop calls its handlers."""
    from deepgram.core.events import EventType

    async with serving() as server, connected(server) as connection:
        got: list[Any] = []
        connection.on(EventType.MESSAGE, got.append)
        connection.on(EventType.CLOSE, lambda _: got.append("closed"))
        listening = asyncio.create_task(connection.start_listening())
        await speak(connection, 2)
        await connection.send_close_stream()
        await listening
        assert finals(got) == expected_texts(2)
        assert got[-1] == "closed"


def test_the_synchronous_client() -> None:
    """It works from a thread of its own."""

    def transcribe(server: Server) -> list[Any]:
        client = DeepgramClient(api_key="k", environment=environment(server))
        with client.listen.v1.connect(**AUDIO) as connection:
            connection.send_media(bytes(2 * BYTES_PER_S))
            connection.send_close_stream()
            return list(connection)

    @in_loop
    async def run() -> None:
        async with serving() as server:
            messages = await asyncio.to_thread(transcribe, server)
            assert finals(messages) == expected_texts(2)

    run()


@in_loop
async def test_keys(tmp_path: Path) -> None:
    """The SDK's key is a token of the server's file; a wrong one is an ApiError 401."""
    (tmp_path / "tokens").write_text("right\n")
    async with serving(token_file=tmp_path / "tokens") as server:
        async with connected(server, key="right") as connection:
            await connection.send_close_stream()
            assert (await rest(connection))[1] == 1000
        with pytest.raises(ApiError) as caught:
            async with connected(server, key="wrong"):
                pass
        assert caught.value.status_code == 401


@in_loop
async def test_contradictions_are_an_api_error() -> None:
    """HTTP 400 comes before there is a websocket."""
    async with serving() as server:
        with pytest.raises(ApiError) as caught:
            async with connected(server, utterance_end_ms=1000):
                pass
        assert caught.value.status_code == 400


@in_loop
async def test_schema_errors() -> None:
    """A wrong text frame comes back as the SDK's error, and the stream goes on."""
    async with serving() as server, connected(server) as connection:
        await connection._send({"type": "Dance"})
        error = await until(connection, ListenV1Error)
        assert (error.variant, error.message) == ("SchemaError", '{"type": "Dance"}')
        await speak(connection, 1)
        await connection.send_close_stream()
        assert finals((await rest(connection))[0]) == expected_texts(1)


_PROGRAM = """
const { DeepgramClient } = require("@deepgram/sdk");
const tell = (message) => console.log(JSON.stringify(message));
const leave = () => setTimeout(() => process.exit(0), 50);
(async () => {
  const [at, key] = process.argv.slice(1);
  const [http, ws] = [`http://${at}`, `ws://${at}`];
  const environment = { base: http, production: ws, agent: ws, agentRest: http };
  const client = new DeepgramClient({ apiKey: key, environment });
  const connection = await client.listen.v1.connect({
    model: "nova-3", encoding: "linear16", sample_rate: 16000, interim_results: "true", vad_events: "true",
    keyterm: ["one", "two"], Authorization: `Token ${key}`, reconnectAttempts: 0,
  });
  connection.on("message", tell);
  connection.on("close", (event) => { tell({ type: "close", code: event.code }); leave(); });
  connection.on("error", (error) => { tell({ type: "error", message: error.message }); leave(); });
  connection.connect();
  await connection.waitForOpen();
  connection.sendKeepAlive({ type: "KeepAlive" });
  for (let n = 0; n < 10; n++) connection.sendMedia(new Uint8Array(3200));
  connection.sendFinalize({ type: "Finalize" });
  connection.sendMedia(new Uint8Array(16000));
  connection.sendCloseStream({ type: "CloseStream" });
})().catch(leave);
"""


@pytest.mark.slow
def test_node_sdk(tmp_path: Path) -> None:
    """The SDK for Node gets the same messages, and a wrong key is refused."""
    modules = node.modules("@deepgram/sdk@5.13.0")
    (tmp_path / "tokens").write_text("right\n")

    @in_loop
    async def run() -> None:
        async with serving(token_file=tmp_path / "tokens") as server:
            messages = await node.run(_PROGRAM, f"127.0.0.1:{server.port}", "right", modules=modules)
            batcher = server._hub.batcher  # type: ignore[union-attr]
            assert batcher.opened[0][1].hotwords == ("one", "two")  # type: ignore[attr-defined]
            refused = await node.run(_PROGRAM, f"127.0.0.1:{server.port}", "wrong", modules=modules)
        assert messages[0]["type"] == "SpeechStarted"
        results = [message for message in messages if message["type"] == "Results" and message["is_final"]]
        texts = [result["channel"]["alternatives"][0]["transcript"] for result in results]
        assert texts == ["w0 w1 w2 w3", "", "w4 w5"]
        assert [result["from_finalize"] for result in results] == [False, True, False]
        assert [message["type"] for message in messages[-2:]] == ["Metadata", "close"]
        assert messages[-1]["code"] == 1000
        assert {message["type"] for message in refused} <= {"error", "close"}
        assert any("401" in message.get("message", "") for message in refused), refused

    run()
