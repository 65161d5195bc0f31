"""OpenAI's REST interface on a real server: OpenAI's own SDK, every format, streams."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

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
from tests.fake_batcher import FakeBatcher
from tests.rest_client import client, openai_error, sdk, text, transcribe
from tests.serving import in_loop, serving

FIXTURES = Path(__file__).parent / "fixtures"

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
    expected = StreamSettings(chunk_ms=700, language="en", prompt="Hello", hotwords=("Ann", "Bo"))
    assert first == StreamSettings(**{**expected.__dict__, "second_pass": True})
    assert second == StreamSettings(chunk_ms=700)


@in_loop
async def test_models() -> None:
    """The model that is loaded, in a list and by its name."""
    async with client() as openai:
        (model,) = (await openai.models.list()).data
        assert (model.id, model.object, model.owned_by) == ("fake", "model", "foresound")
        assert (await openai.models.retrieve("fake")).created == model.created
        with pytest.raises(openai_error("NotFoundError"), match="this server has 'fake'"):
            await openai.models.retrieve("gpt-4")


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
    """The shipped clip with the real model, at once and as a stream; other formats have the same words."""

    async def run() -> None:
        config = ServerConfig(port=0, rest_port=0, limits=Limits(max_streams=1))
        async with Server(config) as server, Batcher(recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model=recognizer.name, languages=recognizer.languages)
            async with sdk(server) as client:
                for response_format in ("srt", "verbose_json"):
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
