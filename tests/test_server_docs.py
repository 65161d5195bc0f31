"""docs/protocol.md says what the code does: examples, codes, limits; its Python example runs."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import wave
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from asr.events import Final, Partial, SpeechEnded, SpeechStarted, Word
from service.codes import CLOSE_CODES, FATAL_ERRORS, RECOVERABLE_ERRORS
from service.config import Limits
from service.connection import MAX_FRAGMENTS
from service.live import MAX_WAITING
from service.messages import Ack, Done, Error, Message, Pong, Problem, Ready, Start
from service.outbox import N_KEPT, Outgoing
from service.protocol.native import encode, parse
from service.protocol.native_models import EndpointingFields, StartMessage
from service.session import MAX_ERRORS
from service.stream_settings import Flushed, StreamSettings
from tests.fake_batcher import expected_texts
from tests.serving import in_loop, serving

DOCS = (Path(__file__).parents[1] / "docs/protocol.md").read_text(encoding="utf-8")
EXAMPLES = [
    json.loads(line)
    for block in re.findall(r"^ *```json\n(.*?)^ *```$", DOCS, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
CLIENT_TYPES = {"start", "flush", "stop", "ping"}
WORD = Word("a", 0, 1, 0.5, True)
MESSAGES: list[Message] = [
    Ready("", "", False, 0, 0, "", Start(), Limits()),
    SpeechStarted(0),
    SpeechEnded(0),
    Partial(0, "", "", (WORD,), 0),
    Final(0, "", (WORD,), 0, 0, False, 0),
    Flushed(0),
    Ack(0, 0),
    Pong(0),
    Error("", "", field="f"),
    Done(0, 0, ""),
]
NUMBERED = {"speech_started", "speech_ended", "final", "flushed", "done"}


def shape(value: Any) -> Any:
    """A value's keys, at every depth."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else None


def section(title: str) -> str:
    return DOCS.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(text: str) -> set[str]:
    return {row.split("|")[1].strip().strip("`") for row in text.splitlines() if row.startswith("|")}


def test_every_message_has_an_example() -> None:
    """From the client and from the server."""
    assert {each["type"] for each in EXAMPLES} == CLIENT_TYPES | {
        json.loads(encode(Outgoing(message), words=True))["type"] for message in MESSAGES
    }


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each["type"] in CLIENT_TYPES])
def test_examples_from_the_client_are_valid(example: dict[str, Any]) -> None:
    """The parser takes them."""
    assert not isinstance(parse(json.dumps(example), StreamSettings()), Problem)


def test_the_example_of_start_shows_the_defaults() -> None:
    """It means the same as an empty start, and has every field but the other name of chunk_ms."""
    example = next(each for each in EXAMPLES if each["type"] == "start")
    assert parse(json.dumps(example), StreamSettings()) == Start()
    assert set(example) == set(StartMessage.model_fields) - {"latency"}
    assert set(example["endpointing"]) == set(EndpointingFields.model_fields)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_examples_from_the_server_have_the_fields_of_the_code(message: Message) -> None:
    """The same keys at every depth, and a number where the message is never dropped."""
    real = json.loads(encode(Outgoing(message), words=True))
    real |= {"seq": 1} if real["type"] in NUMBERED else {}
    (example,) = (each for each in EXAMPLES if each["type"] == real["type"])
    assert shape(example) == shape(real)


def test_the_fields_of_start_are_explained() -> None:
    """Each field of the model is in the table."""
    cells = first_column(section("Messages from the client"))
    explained = {name.strip("` ") for cell in cells for name in cell.split(",")}
    nested = {f"endpointing.{name}" for name in EndpointingFields.model_fields}
    assert explained - {"field", "---"} == set(StartMessage.model_fields) - {"type", "endpointing"} | nested


def test_error_codes_are_those_of_the_code() -> None:
    """Both tables, with the close codes."""
    tables = section("Messages from the server")
    assert first_column(tables) - {"code", "---"} == set(RECOVERABLE_ERRORS) | set(FATAL_ERRORS)
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", tables, re.MULTILINE))
    assert {code: int(close) for code, close in documented.items()} == FATAL_ERRORS


def test_close_codes_are_those_of_the_code() -> None:
    """Every one that the server sends, and 1006, which nobody sends."""
    codes = {int(code) for code in first_column(section("Close codes")) if code.isdigit()}
    assert codes == set(CLOSE_CODES) | {1006}
    assert set(FATAL_ERRORS.values()) < set(CLOSE_CODES)


def test_limits_are_those_of_the_code() -> None:
    """The numbers in the table are the defaults."""
    limits, table = Limits(), section("Limits")
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines() if row.startswith("|")
    ]
    assert [default for _, default, _ in rows[2:]] == [
        f"{limits.max_streams}",
        *["any number" for limit in (limits.key_streams, limits.key_starts) if limit is None],
        f"{MAX_FRAGMENTS}",
        f"{limits.message_bytes >> 20} MiB",
        f"{limits.queue_s:g} s",
        f"{MAX_WAITING}",
        f"{limits.idle_s:g} s",
        f"{limits.start_s:g} s",
        f"{limits.session_s / 3600:g} h",
        f"{limits.resume_s:g} s",
        f"{N_KEPT}",
        f"{MAX_ERRORS}",
        f"{2 * limits.ping_s:g} s",
        f"{limits.drain_s:g} s",
    ]
    assert f"silent for {limits.ping_s:g} s" in table


@in_loop
async def test_the_python_example_runs(tmp_path: Path) -> None:
    """It prints the finals of a recording."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(4 * 8000 * 3))
    async with serving() as server:
        command = [sys.executable, "-c", example, server.stream_url, str(tmp_path / "a.wav")]
        running = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
        output, _ = await running.communicate()
        assert (running.returncode, output.decode().splitlines()) == (0, expected_texts(3))
