"""Clients of OpenAI's REST interface: the SDK, and plain HTTP for what it cannot send."""

from __future__ import annotations

import io
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asr.events import SAMPLE_RATE
from service.server import Server
from tests.fake_batcher import expected_texts
from tests.serving import serving

openai = pytest.importorskip("openai", reason="needs openai")

import httpx2  # noqa: E402  # comes with openai

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


def openai_error(name: str) -> Any:
    """A class of the SDK's errors."""
    return getattr(openai, name)
