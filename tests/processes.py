"""A real server process with the fake model."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@asynccontextmanager
async def process(
    *arguments: str, port: int = 0, stderr: int = PIPE, within: Sequence[str] = ()
) -> AsyncIterator[tuple[Process, str]]:
    """``foresound serve`` with the fake model, and the address that it prints.

    ``within`` is a command that runs it in surroundings of its own making.
    """
    command = [sys.executable, "-m", "tests.fake_batcher", "serve", "--port", str(port), *arguments]
    command = [*within, *command]
    running = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=stderr)
    assert running.stdout
    try:
        said = (await running.stdout.readline()).decode()
        if not said and running.stderr:
            raise AssertionError(f"the server did not start: {(await running.stderr.read()).decode()}")
        yield running, said.removeprefix("listening on ").strip()
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


class Address:
    """Where a process listens, as the functions of tests/serving.py need it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = int(url.rsplit(":", 1)[1])
        self.stream_url = f"{url.replace('http', 'ws')}/v1/stream"
