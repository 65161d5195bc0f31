"""The whole service with the real model: real websockets, a real process, a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr.events import SAMPLE_RATE, Final, Partial
from asr.recognizer import Recognizer
from clients import StreamingClient
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests.chromium import Chromium, microphone_arguments
from tests.page_steps import IS_DONE, asynchronous, browser, texts, write_clip
from tests.test_readme import snippet

BLOCK = SAMPLE_RATE // 10
FIRST_PARTIAL_S = 30.0


def quantized(samples: np.ndarray) -> np.ndarray:
    """16-bit samples."""
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16)


def alone(recognizer: Recognizer, samples: np.ndarray, *, chunk_ms: int = 300) -> list[str]:
    """The finals of a stream of its own."""
    stream = recognizer.stream(chunk_ms=chunk_ms)
    stream.feed(samples)
    stream.finish()
    return [segment.text for segment in stream.transcript.segments]


@contextlib.asynccontextmanager
async def serving(recognizer: Recognizer, *, max_streams: int) -> AsyncIterator[Server]:
    """A server on a free port with the real model."""
    config = ServerConfig(port=0, limits=Limits(max_streams=max_streams))
    async with Server(config) as server, Batcher(recognizer, n_slots=max_streams) as batcher:
        server.open_for(batcher, model=recognizer.name)
        yield server
        await server.close()


async def finals_of(url: str, samples: np.ndarray, *, chunk_ms: int = 300, pause_s: float = 0.0) -> list[str]:
    """Stream samples as 16-bit PCM; the texts of all finals."""
    found = []
    async with StreamingClient(url, chunk_ms=chunk_ms) as client:

        async def speak() -> None:
            for start in range(0, len(samples), BLOCK):
                await client.send(samples[start : start + BLOCK])
                await asyncio.sleep(pause_s)
            await client.finish()

        speaking = asyncio.create_task(speak())
        async for event in client:
            if isinstance(event, Final):
                found.append(event.text)
        await speaking
    return found


def test_many_streams_say_what_each_says_alone(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Eight clients at once, with other speech and other chunk sizes, get the texts of lone streams."""
    chunks_ms = (300, 300, 80, 600, 300, 160, 1000, 300)
    starts_s = (0, 0.5, 1, 2, 3, 4, 5, 5.5)
    clips = [quantized(jfk[int(start * SAMPLE_RATE) :][: 5 * SAMPLE_RATE]) for start in starts_s]
    expected = [alone(recognizer, clip, chunk_ms=ms) for clip, ms in zip(clips, chunks_ms, strict=True)]

    async def run() -> list[list[str]]:
        async with serving(recognizer, max_streams=len(clips)) as server:
            return await asyncio.gather(
                *(
                    finals_of(server.stream_url, clip, chunk_ms=chunk_ms, pause_s=0.01)
                    for clip, chunk_ms in zip(clips, chunks_ms, strict=True)
                )
            )

    assert asyncio.run(run()) == expected
    assert all(expected)


def test_readme_snippet(recognizer: Recognizer, jfk: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    """What the README shows for programs prints the events of what is sent."""

    async def blocks() -> AsyncIterator[np.ndarray]:
        for start in range(0, 3 * SAMPLE_RATE, BLOCK):
            yield jfk[start : start + BLOCK]

    async def run() -> None:
        async with serving(recognizer, max_streams=1) as server:
            names: dict[str, Any] = {}
            source = snippet("StreamingClient").replace("ws://127.0.0.1:8765", server.url)
            exec(compile(source, "README.md", "exec"), names)
            await names["listen"](blocks())

    asyncio.run(run())
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("Final(") and "second_pass=True" in last


class Relay:
    """Stands between client and server, and cuts every connection when it is told to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: list[asyncio.StreamWriter] = []
        self.n_connections = 0

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, there_writer]
        await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer))

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()


def test_a_cut_connection_changes_nothing(recognizer: Recognizer, jfk: np.ndarray) -> None:
    """Cut again and again in the middle of words, a recording has the finals of an unbroken one."""
    samples = quantized(jfk)

    async def run() -> tuple[list[str], int]:
        async with serving(recognizer, max_streams=1) as server, Relay(server.port) as relay:

            async def cut_often() -> None:
                while True:
                    await asyncio.sleep(0.7)
                    relay.cut()

            cutting = asyncio.create_task(cut_often())
            finals = await finals_of(f"ws://127.0.0.1:{relay.port}", samples, pause_s=0.03)
            cutting.cancel()
            return finals, relay.n_connections

    finals, n_connections = asyncio.run(run())
    assert n_connections > 2
    assert finals == alone(recognizer, samples)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """`foresound serve` as its own process, loaded and listening."""
    command = [sys.executable, "-m", "clients.cli", "serve", "--port", "0", "--max-streams", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def stream_url(process: subprocess.Popen[str]) -> str:
    """Where the process says that it takes streams."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("streams at "):
            return line.removeprefix("streams at ").strip()
    raise AssertionError("the server ended before it listened")


def test_sigterm_finishes_running_streams(
    recognizer: Recognizer, jfk: np.ndarray, process: subprocess.Popen[str]
) -> None:
    """After SIGTERM a stream goes on to its end and loses nothing, then the server exits with 0."""
    url, samples = stream_url(process), quantized(jfk[: 6 * SAMPLE_RATE])

    async def run() -> list[str]:
        found = []
        is_told = False
        async with StreamingClient(url) as client:

            async def speak() -> None:
                for start in range(0, len(samples), BLOCK):
                    await client.send(samples[start : start + BLOCK])
                    await asyncio.sleep(0.05)
                await client.finish()

            speaking = asyncio.create_task(speak())
            async for event in client:
                if isinstance(event, Partial) and not is_told:
                    process.send_signal(signal.SIGTERM)
                    is_told = True
                if isinstance(event, Final):
                    found.append(event.text)
            await speaking
        return found

    assert asyncio.run(run()) == alone(recognizer, samples)
    assert process.wait(20) == 0


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def chromium(wav: Path) -> Iterator[Chromium]:
    """A browser whose microphone plays the clip."""
    with browser(*microphone_arguments(wav)) as chromium:
        yield chromium


@asynchronous
async def test_the_page_shows_what_is_said(
    recognizer: Recognizer, chromium: Chromium, tmp_path: Path
) -> None:
    """A person who opens the page, starts the microphone and speaks reads the words, first as drafts."""
    screenshots = Path(os.environ.get("FORESOUND_SCREENSHOTS", tmp_path))
    async with serving(recognizer, max_streams=2) as server, chromium.page(server.url) as page:
        await page.set_size(1280, 800)
        await page.click("#main")
        await page.wait_for("document.querySelector('.word.draft')", timeout_s=FIRST_PARTIAL_S)
        await page.wait_for(
            "document.querySelectorAll('li').length >= 2 && document.querySelectorAll('.word').length >= 8",
            timeout_s=FIRST_PARTIAL_S,
        )
        await page.screenshot(screenshots / "service.png")
        await page.set_size(390, 844)
        await page.screenshot(screenshots / "service-phone.png")
        await page.click("#main")
        await page.wait_for(IS_DONE, timeout_s=FIRST_PARTIAL_S)
        said = " ".join(await texts(page)).lower()
        assert "fellow american" in said
        assert page.errors == []
