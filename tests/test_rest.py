"""OpenAI's REST interface on a real server: OpenAI's own SDK, every format, streams, wrong requests."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pysubs2
import pytest
import webvtt

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.rest_stream import recognize
from service.server import Server
from service.stream_settings import StreamSettings
from tests.fake_batcher import FakeBatcher, expected_texts
from tests.serving import in_loop, metric, serving

openai = pytest.importorskip("openai", reason="needs openai")

import httpx2  # noqa: E402  # comes with openai

FIXTURES = Path(__file__).parent / "fixtures"
PATH = "/audio/transcriptions"


def wav(seconds: float, *, rate: int = SAMPLE_RATE) -> bytes:
    """Silence; the fake hears a word in each quarter second of it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, 0, "NONE", ""))
        writer.writeframes(bytes(int(seconds * rate) * 2))
    return file.getvalue()


def sdk(server: Server, *, key: str = "x") -> Any:
    return openai.AsyncOpenAI(api_key=key, base_url=server.rest_url, max_retries=0)


@asynccontextmanager
async def client(**config: Any) -> AsyncIterator[Any]:
    """The SDK with a server of its own."""
    async with serving(rest_port=0, **config) as server, sdk(server) as client:
        yield client


@asynccontextmanager
async def http(server: Server, **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=str(server.rest_url), headers=headers) as client:
        yield client


async def transcribe(client: Any, seconds: float = 2.5, **options: Any) -> Any:
    return await client.audio.transcriptions.create(
        file=("speech.wav", wav(seconds)), model="whisper-1", **options
    )


def text(seconds: float) -> str:
    return " ".join(expected_texts(seconds))


# Formats


@in_loop
async def test_json() -> None:
    """The default: the text and the length."""
    async with client() as openai:
        result = await transcribe(openai)
    assert result.text == text(2.5)
    assert (result.usage.type, result.usage.seconds) == ("duration", 2.5)
    assert result.logprobs is None


@in_loop
async def test_plain_text() -> None:
    """A string with a line break."""
    async with client() as openai:
        assert await transcribe(openai, response_format="text") == text(2.5) + "\n"


@in_loop
async def test_subtitles(tmp_path: Path) -> None:
    """SubRip and WebVTT that independent readers read."""
    async with client() as openai:
        srt = await transcribe(openai, response_format="srt")
        vtt = await transcribe(openai, response_format="vtt")
    cues = pysubs2.SSAFile.from_string(srt, format_="srt")
    assert [(cue.start, cue.end, cue.text) for cue in cues] == [
        (0, 1000, "w0 w1 w2 w3"),
        (1000, 2000, "w4 w5 w6 w7"),
        (2000, 2500, "w8 w9"),
    ]
    captions = webvtt.from_string(vtt).captions
    assert [caption.text for caption in captions] == [cue.text for cue in cues]


@in_loop
async def test_verbose_json() -> None:
    """Segments by default, words on request."""
    async with client() as openai:
        result = await transcribe(openai, response_format="verbose_json", language="en")
        assert (result.language, result.duration, result.words) == ("en", 2.5, None)
        assert [(each.id, each.start, each.end, each.text) for each in result.segments] == [
            (0, 0.0, 1.0, "w0 w1 w2 w3"),
            (1, 1.0, 2.0, "w4 w5 w6 w7"),
            (2, 2.0, 2.5, "w8 w9"),
        ]
        assert result.segments[0].avg_logprob == -0.1054 and result.segments[0].compression_ratio > 0
        result = await transcribe(openai, response_format="verbose_json", timestamp_granularities=["word"])
        assert result.segments is None and len(result.words) == 10
        assert (result.words[1].word, result.words[1].start, result.words[1].end) == ("w1", 0.25, 0.5)
        assert result.words[1].confidence == 0.9


@in_loop
async def test_stream() -> None:
    """Deltas that add up to the text, with words as extra fields."""
    async with client() as openai:
        stream = await transcribe(openai, stream=True, include=["logprobs"])
        *deltas, done = [event async for event in stream]
    assert {type(event).__name__ for event in deltas} == {"TranscriptionTextDeltaEvent"}
    assert type(done).__name__ == "TranscriptionTextDoneEvent"
    assert "".join(event.delta for event in deltas) == done.text == text(2.5)
    assert len(deltas) > 2 and deltas[0].logprobs[0].token == "w0"
    assert [word["word"] for event in deltas for word in event.words] == done.text.split()


@in_loop
async def test_log_probabilities() -> None:
    """One entry a word, if they are asked for."""
    async with client() as openai:
        result = await transcribe(openai, 0.25, include=["logprobs"])
    assert [(each.token, each.logprob) for each in result.logprobs] == [("w0", -0.1054)]


@in_loop
async def test_a_recording_without_words_is_an_empty_text() -> None:
    """Not an error, in no format."""
    async with client() as openai:
        assert (await transcribe(openai, 0.1)).text == ""
        assert (await transcribe(openai, 0.1, response_format="srt")).strip() == ""
        assert (await transcribe(openai, 0.1, response_format="vtt")).strip() == "WEBVTT"
        stream = await transcribe(openai, 0.1, stream=True)
        assert [event.type async for event in stream] == ["transcript.text.done"]


@in_loop
async def test_what_reaches_the_recogniser() -> None:
    """Language, prompt and keywords; a second pass where nothing has been told before; large chunks."""
    batcher = FakeBatcher()
    async with serving(batcher, rest_port=0) as server, sdk(server) as openai:
        server._doorkeeper.opening = server._doorkeeper.opening.__class__(languages=("en",))
        await transcribe(
            openai,
            language="en-US",
            prompt="Hello",
            temperature=0.2,
            keywords=["Ann", "Bo"],
            languages=["en"],
        )
        await transcribe(openai, stream=True)
    first, second = (settings for _, settings in batcher.opened)
    expected = StreamSettings(chunk_ms=1000, language="en", prompt="Hello", hotwords=("Ann", "Bo"))
    assert first == StreamSettings(**{**expected.__dict__, "second_pass": True})
    assert second == StreamSettings(chunk_ms=1000)


@in_loop
async def test_models() -> None:
    """The model that is loaded, in a list and by its name."""
    async with client() as openai:
        (model,) = (await openai.models.list()).data
        assert (model.id, model.object, model.owned_by) == ("fake", "model", "foresound")
        assert (await openai.models.retrieve("fake")).created == model.created
        with pytest.raises(openai_error("NotFoundError"), match="this server has 'fake'"):
            await openai.models.retrieve("gpt-4")


def openai_error(name: str) -> Any:
    return getattr(openai, name)


@in_loop
async def test_a_damaged_recording_is_a_bad_request() -> None:
    """Whether it is found out at once or in the middle, before or after the first words."""
    for data in (b"nothing", wav(1)[:40]):
        for is_streamed in (False, True):
            async with client() as sdk:
                with pytest.raises(openai_error("BadRequestError"), match="the file") as caught:
                    await sdk.audio.transcriptions.create(
                        file=("a.wav", data), model="whisper-1", stream=is_streamed
                    )
                assert caught.value.body["param"] == "file"


# Wrong requests


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "diarized_json"}, "response_format", "Supported values are: 'json'"),
        ({"stream": "true", "response_format": "srt"}, "stream", "leave one out"),
        ({"stream": "perhaps"}, "stream", "'true', 'false'"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities", "'word', 'segment'"),
        ({"language": "xx"}, "language", "language must be one of en"),
        ({"keywords[]": "a" * 101}, "keywords", "at most 100"),
    ],
)
def test_wrong_fields(fields: dict[str, str], param: str, message: str) -> None:
    """An error of OpenAI's form that names the field."""

    @in_loop
    async def run() -> None:
        async with serving(rest_port=0) as server, http(server) as client:
            response = await client.post(PATH, data=fields, files={"file": ("a.wav", wav(0.5))})
            error = response.json()["error"]
            assert (response.status_code, error["type"]) == (400, "invalid_request_error")
            assert error["param"] == param and message in error["message"]

    run()


@in_loop
async def test_requests_that_are_none() -> None:
    """No form, no file, another path, another method: JSON errors, never a page or a traceback."""
    async with serving(rest_port=0) as server, http(server) as client:
        for arguments in ({}, {"json": {"file": "x"}}, {"data": {"file": "x"}}, {"files": {"other": b"x"}}):
            response = await client.post(PATH, **arguments)  # type: ignore[arg-type]
            assert response.status_code == 400 and response.json()["error"]["param"] == "file"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert (await client.post(PATH, content=b"--y", headers=headers)).status_code == 400
        response = await client.get(PATH)
        assert response.status_code == 405 and response.json()["error"]["type"] == "invalid_request_error"
        assert (await client.post("/chat/completions")).status_code == 404


@in_loop
async def test_recordings_that_are_too_long() -> None:
    """413, whether the length is announced or not."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        for _ in range(20):
            yield bytes(1 << 20)

    async with serving(rest_port=0, upload_bytes=1 << 20) as server, http(server) as client:
        response = await client.post(PATH, files={"file": ("a.wav", bytes(3 << 20))})
        assert (response.status_code, response.json()["error"]["param"]) == (413, "file")
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        response = await client.post(PATH, content=chunks(), headers=headers)
        assert response.status_code == 413


@in_loop
async def test_keys_and_origins(tmp_path: Path) -> None:
    """The same tokens and the same pages as for websockets."""
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    async with serving(rest_port=0, token_file=tokens, allow_origins=("https://friend.example",)) as server:
        async with sdk(server, key="wrong") as client:
            with pytest.raises(openai_error("AuthenticationError"), match="incorrect API key"):
                await client.models.list()
            with pytest.raises(openai_error("AuthenticationError")):
                await transcribe(client)
        async with sdk(server, key="secret") as client:
            assert (await transcribe(client)).text == text(2.5)
        async with http(server, Authorization="Bearer secret") as client:
            assert (
                await client.get("/models", headers={"Origin": "https://evil.example"})
            ).status_code == 403
            friendly = await client.get("/models", headers={"Origin": "https://friend.example"})
            assert friendly.headers["access-control-allow-origin"] == "https://friend.example"


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
@in_loop
async def test_tls(tmp_path: Path) -> None:
    """With the server's certificate, and on any of the machine's addresses."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} "
        f"-out {cert} -days 2 -subj /CN=localhost"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    async with serving(rest_port=0, tls_cert=cert, tls_key=key, host="", no_auth=True) as server:
        assert str(server.rest_url).startswith("https://localhost:")
        async with httpx2.AsyncClient(base_url=str(server.rest_url), verify=False) as client:
            assert (await client.get("/models")).json()["data"][0]["id"] == "fake"


@in_loop
async def test_places_are_shared_with_the_websockets() -> None:
    """A full server says when to come back, and a place is free again after each request."""
    batcher = FakeBatcher(n_slots=1)
    async with serving(batcher, rest_port=0, limits=Limits(max_streams=1)) as server:
        async with sdk(server) as client, http(server) as plain:
            for is_streamed in (False, True, False):
                result = await transcribe(client, stream=is_streamed)
                if is_streamed:
                    async for _ in result:
                        pass
            batcher.hold()
            waiting = asyncio.create_task(transcribe(client))
            while not batcher.n_used:
                await asyncio.sleep(0.01)
            response = await plain.post(PATH, files={"file": ("a.wav", wav(1))})
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
            batcher.release()
            assert (await waiting).text == text(2.5)
        assert await metric(server, 'sessions_ended_total{outcome="stop"}') == 0
        assert await metric(server, 'sessions_ended_total{cause="stop"}') == 4


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_frees_its_place(is_streamed: bool) -> None:
    """Its recording is not recognised to the end."""

    @in_loop
    async def run() -> None:
        batcher = FakeBatcher(n_slots=1, tick_s=0.02)
        limits = Limits(max_streams=1)
        async with serving(batcher, rest_port=0, limits=limits) as server, http(server) as client:
            fields = {"stream": "true"} if is_streamed else {}
            asking = asyncio.create_task(client.post(PATH, data=fields, files={"file": ("a.wav", wav(60))}))
            while not batcher.n_used:
                await asyncio.sleep(0.01)
            asking.cancel()
            while batcher.n_used or server._registry.is_full:
                await asyncio.sleep(0.01)

    run()


@in_loop
async def test_a_server_without_its_model() -> None:
    """503 until it is loaded."""
    async with Server(ServerConfig(port=0, rest_port=0)) as server, http(server) as client:
        response = await client.get("/models")
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        server.open_for(FakeBatcher(), model="fake")
        assert (await client.get("/models")).status_code == 200


@in_loop
async def test_running_requests_end_when_the_server_shuts_down() -> None:
    """What has begun is answered, what comes then is not taken."""
    batcher = FakeBatcher(tick_s=0.02)
    async with serving(batcher, rest_port=0, limits=Limits(drain_s=5)) as server, sdk(server) as client:
        asking = asyncio.create_task(transcribe(client, 10))
        while not batcher.n_used:
            await asyncio.sleep(0.01)
        await server.drain()
        assert (await asking).text == text(10)
        with pytest.raises(openai_error("APIConnectionError")):
            await transcribe(client)


@in_loop
async def test_a_failing_model_is_a_server_error() -> None:
    """500 in OpenAI's form before the first event, an event with the error after it."""

    class Broken(FakeBatcher):
        async def open(self, *arguments: Any) -> Any:
            slot = await super().open(*arguments)
            slot.tick = lambda: [slot.close(), *slot._fail(b"\xbe" * 4)][1:]  # type: ignore[method-assign]
            return slot

    async with serving(Broken(), rest_port=0) as server, sdk(server) as client:
        with pytest.raises(openai_error("InternalServerError"), match="recogniser failed"):
            await transcribe(client)


@in_loop
async def test_audio_is_fed_no_faster_than_it_is_recognised() -> None:
    """A long recording waits in its file, not in memory."""
    batcher = FakeBatcher(tick_s=0.001)
    most = 0.0
    samples = np.zeros(60 * SAMPLE_RATE, np.float32)
    blocks = iter(np.split(samples, 600))
    async for _ in recognize(batcher, blocks, StreamSettings(), queue_s=5):
        most = max([most, *(slot.queued_s for slot in batcher.slots)])
    assert 0 < most <= 6.1


# The real model


@pytest.mark.slow
def test_real_speech(recognizer: Recognizer) -> None:
    """The shipped clip in every format with the real model."""

    async def run() -> None:
        config = ServerConfig(port=0, rest_port=0, limits=Limits(max_streams=1))
        async with Server(config) as server, Batcher(recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model=recognizer.name, languages=recognizer.languages)
            async with sdk(server) as client:
                for response_format in ("json", "text", "srt", "vtt", "verbose_json"):
                    with (FIXTURES / "jfk.flac").open("rb") as file:
                        result = await client.audio.transcriptions.create(
                            file=file, model="whisper-1", response_format=response_format
                        )
                    said = json.dumps(result) if isinstance(result, str) else result.text
                    assert "your country" in said
                with (FIXTURES / "jfk.flac").open("rb") as file:
                    stream = await client.audio.transcriptions.create(
                        file=file, model="whisper-1", stream=True
                    )
                    *deltas, done = [event async for event in stream]
                assert "".join(event.delta for event in deltas) == done.text
                assert "your country" in done.text
            await server.close()

    asyncio.run(run())
