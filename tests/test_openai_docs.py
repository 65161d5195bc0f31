"""The page on OpenAI's protocols: every row names a test, and the programs print what they say."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
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

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```(python|js)\n(.*?)```\n\n```\n\$ [^\n]*\n(.*?)```", PAGE, re.DOTALL)


def test_every_row_is_backed_by_a_test() -> None:
    """The last cell of each row is a test that exists."""
    rows = [line for line in PAGE.split("# OpenAI Realtime\n")[1].splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not re.search(r"\| test \|$", row)]
    assert len(rows) > 50
    for row in rows:
        named = re.search(r"\| `(test_\w+\.py)::(test_\w+)` \|$", row)
        assert named, row
        assert f"def {named[2]}(" in (ROOT / "tests" / named[1]).read_text(encoding="utf-8"), row


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PROGRAMS)), ids=["python", "node", "rest"])
def test_programs(recognizer: Recognizer, jfk: np.ndarray, tmp_path: Path, index: int) -> None:
    """A program of the page runs as it stands there, but for the port."""
    pytest.importorskip("openai")
    language, program, expected = PROGRAMS[index]
    is_node = language == "js"
    if is_node and not shutil.which("openssl"):
        pytest.skip("makes its certificate with openssl")
    modules = node.modules("openai", "ws") if is_node else tmp_path
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    if is_node:
        (command,) = re.findall(r"`(openssl .*?)`", PAGE)
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    wav, source = tmp_path / "jfk.wav", tmp_path / ("transcribe.js" if is_node else "transcribe.py")
    soundfile.write(wav, soxr.resample(jfk, SAMPLE_RATE, 24_000), 24_000, subtype="PCM_16")

    async def run() -> str:
        tls = {"tls_cert": cert, "tls_key": key} if is_node else {}
        config = ServerConfig(port=0, rest_port=0, limits=Limits(max_streams=1), **tls)
        async with Server(config) as server, Batcher(recognizer, n_slots=1) as batcher:
            server.open_for(batcher, model=recognizer.name, languages=recognizer.languages)
            rest_port = str(server.rest_url).rpartition(":")[2].partition("/")[0]
            source.write_text(program.replace("8765", str(server.port)).replace("8766", rest_port))
            process = await asyncio.create_subprocess_exec(
                "node" if is_node else sys.executable,
                str(source),
                str(wav),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "NODE_PATH": str(modules)},
            )
            printed, _ = await asyncio.wait_for(process.communicate(), 60)
            await server.close()
        return printed.decode()

    assert asyncio.run(run()) == expected
