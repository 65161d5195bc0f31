"""A client of OpenAI's Realtime protocol over a real session, without sockets."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import count
from typing import Any

from service.protocol.dialect import Opening
from service.protocol.openai_realtime import (
    OpenAIRealtimeDialect,
)
from service.stream_settings import AudioFormat, StreamSettings
from tests.dialogue import Dialogue
from tests.fake_batcher import QUIET

RATE = 24_000
DEFAULTS = StreamSettings()
TRANSCRIPTION = "conversation.item.input_audio_transcription"
APPEND, COMMIT, CLEAR = (f"input_audio_buffer.{name}" for name in ("append", "commit", "clear"))
MANUAL = {"audio": {"input": {"turn_detection": None}}}


def counted() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"{next(numbers):04}"


class Talk(Dialogue):
    """A client of OpenAI's protocol."""

    def __init__(
        self,
        *,
        headers: dict[str, str] | None = None,
        languages: tuple[str, ...] = ("en",),
        defaults: StreamSettings = DEFAULTS,
    ) -> None:
        query = {"intent": ["transcription"]}
        opening = Opening(query, headers or {}, defaults, model="fake", languages=languages)
        super().__init__(OpenAIRealtimeDialect(opening, token=counted(), clock=lambda: 1_900_000_000.0))

    def event(self, kind: str, *, shown: str = "", **fields: Any) -> list[dict[str, Any]]:
        """Send an event; what came back."""
        return [json.loads(each) for each in self.send(json.dumps({"type": kind, **fields}), shown=shown)]

    def update(self, session: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
        return self.event("session.update", session={"type": "transcription", **session}, **fields)

    def speak(self, seconds: float, *, begin: bytes = b"", rate: int = 2 * RATE) -> list[dict[str, Any]]:
        """So much audio; a word each quarter second."""
        n_bytes = int(seconds * rate) // 2 * 2
        data = (begin + bytes(n_bytes))[:n_bytes]
        kind = "silence" if begin == QUIET else "speech"
        return self.event(APPEND, audio=base64.b64encode(data).decode(), shown=f"{seconds:g} s of {kind}")

    def rest(self, seconds: float) -> list[dict[str, Any]]:
        return self.speak(seconds, begin=QUIET)

    @property
    def asked(self) -> tuple[AudioFormat, StreamSettings]:
        """What the recogniser was asked for last."""
        return self.session.start.audio, self.session.start.settings


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Types without what all of them begin with."""
    return [each["type"].replace("conversation.item.", "").replace("input_audio_", "") for each in events]


def only_error(events: list[dict[str, Any]]) -> dict[str, Any]:
    (event,) = events
    assert event["type"] == "error"
    return event["error"]
