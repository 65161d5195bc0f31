"""The pages on Deepgram and Vosk: every row names a test, and the programs print what they say."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr.events import SAMPLE_RATE
from asr.recognizer import Recognizer
from tests import node
from tests.test_vosk_server import recognising

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / "docs" / f"compatibility-{name}.md").read_text() for name in ("deepgram", "vosk")}


@pytest.mark.parametrize("page", PAGES)
def test_every_row_is_backed_by_a_test(page: str) -> None:
    """The last cell of each row is a test that exists."""
    rows = [line for line in PAGES[page].splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not re.search(r"\| test \|$", row)]
    assert len(rows) > 10
    for row in rows:
        named = re.search(r"\| `(test_\w+\.py)::(test_\w+)` \|$", row)
        assert named, row
        assert f"def {named[2]}(" in (ROOT / "tests" / named[1]).read_text(), row


def programs(page: str, language: str) -> tuple[str, str]:
    """A page's program and what it prints."""
    found = re.search(rf"```{language}\n(.*?)```\n\n```\n\$ [^\n]*\n(.*?)```", PAGES[page], re.DOTALL)
    assert found
    return found[1], found[2]


async def output(*command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    return printed.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "language"), [("deepgram", "python"), ("deepgram", "js"), ("vosk", "python")]
)
def test_programs(recognizer: Recognizer, jfk: np.ndarray, tmp_path: Path, page: str, language: str) -> None:
    """A program of the page runs as it stands there, but for the port."""
    pytest.importorskip("deepgram" if page == "deepgram" else "websockets")
    program, expected = programs(page, language)
    modules = node.modules("@deepgram/sdk@5.13.0") if language == "js" else tmp_path
    wav, source = tmp_path / "jfk.wav", tmp_path / f"transcribe.{'js' if language == 'js' else 'py'}"
    soundfile.write(wav, jfk, SAMPLE_RATE, subtype="PCM_16")

    async def run() -> str:
        async with recognising(recognizer, 1) as server:
            assert server.vosk_url
            ports = {"8765": str(server.port), "2700": server.vosk_url.rpartition(":")[2]}
            text = re.sub("|".join(ports), lambda match: ports[match[0]], program)
            source.write_text(text)
            interpreter = "node" if language == "js" else sys.executable
            return await output(interpreter, str(source), str(wav), NODE_PATH=str(modules))

    assert asyncio.run(run()) == expected
