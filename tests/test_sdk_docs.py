"""docs/sdk.md: each program runs as it stands there, but for the ports, and prints what the page says."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from service.batcher import Batcher
from service.config import Limits, ServerConfig
from service.server import Server
from tests import node

PAGE = (Path(__file__).parents[1] / "docs" / "sdk.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(
    r"```(?:python|js)\n((?:#|//) (\S+)\n.*?)```\n\n```\n\$ (?:python|node) (\S+) (\S+)\n(.*?)```",
    PAGE,
    re.DOTALL,
)
PACKAGES = {"realtime.js": node.OPENAI, "listen.js": node.DEEPGRAM}
MODULES = {"realtime.py": "openai", "transcriptions.py": "openai", "listen.py": "deepgram"}
RUN_S = 120.0
LIKE = 0.8


def test_every_program_is_found() -> None:
    """With its name, its command and its output."""
    assert len(PROGRAMS) == PAGE.count("```python") + PAGE.count("```js") == 6
    assert all(name == run for _, name, run, _, _ in PROGRAMS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "name", "wav", "expected"),
    [(program, name, wav, expected) for program, name, _, wav, expected in PROGRAMS],
    ids=[name for _, name, *_ in PROGRAMS],
)
def test_programs(
    recognizer: Recognizer, jfk: np.ndarray, tmp_path: Path, program: str, name: str, wav: str, expected: str
) -> None:
    """A program prints what the recogniser hears."""
    modules, tls = tmp_path, {}
    if name.endswith(".js"):
        modules = node.modules(*PACKAGES[name])
        tls = certificate(tmp_path) if "https" in program else {}
    elif name in MODULES:
        pytest.importorskip(MODULES[name], reason=f"needs {MODULES[name]}")
    for file, rate in (("jfk.wav", SAMPLE_RATE), ("jfk24.wav", 24_000)):
        soundfile.write(tmp_path / file, soxr.resample(jfk, SAMPLE_RATE, rate), rate, subtype="PCM_16")

    async def run() -> str:
        config = ServerConfig(port=0, rest_port=0, vosk_port=0, limits=Limits(max_streams=1), **tls)
        async with Server(config) as server, Batcher(recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model=recognizer.name, languages=recognizer.languages)
            (tmp_path / name).write_text(with_ports(program, server), encoding="utf-8")
            interpreter = "node" if name.endswith(".js") else sys.executable
            printed = await output(interpreter, name, wav, folder=tmp_path, modules=modules)
            await server.close()
        return printed

    assert likeness(asyncio.run(run()), expected) > LIKE


def likeness(a: str, b: str) -> float:
    """How alike two texts are but for times: another processor rounds otherwise and may hear otherwise."""
    words = (re.sub(r"\d+([.:,]\d+)*", "0", text).split() for text in (a, b))
    return SequenceMatcher(None, *words).ratio()


def certificate(folder: Path) -> dict[str, Path]:
    """A certificate, made as the page says."""
    if not shutil.which("openssl"):
        pytest.skip("makes its certificate with openssl")
    (command,) = re.findall(r"`(openssl .*?)`", PAGE)
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}


def with_ports(program: str, server: Server) -> str:
    """The program with the ports that the server has got."""
    urls = {"8765": server.url, "8766": server.rest_url, "2700": server.vosk_url}
    ports = {there: re.findall(r":(\d+)", str(url))[0] for there, url in urls.items()}
    return re.sub("|".join(ports), lambda match: ports[match[0]], program)


async def output(*command: str, folder: Path, modules: Path) -> str:
    """What a program prints."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(modules)},
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), RUN_S)
    finally:
        if process.returncode is None:
            process.kill()
    return printed.decode()
