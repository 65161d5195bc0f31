"""The native protocol's messages from clients, one model each; docs/protocol.md explains them.

A field's description is what an error tells the client to send instead, so it lists the valid values.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LATENCY_MS = {"minimal": 80, "low": 160, "medium": 300, "high": 600}  # chunk size that each name asks for
_MAX_SAFE_INT = 2**53 - 1  # JavaScript's: every client can echo it


class _Message(BaseModel):
    # Strict: "16000" is no integer and true is no number. A field that a newer client knows is ignored.
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class EndpointingFields(_Message):
    """When a segment ends."""

    silence_ms: int = Field(default=800, ge=100, le=5000, description="an integer from 100 to 5000")
    max_segment_s: float = Field(
        default=30.0, ge=5, le=30, allow_inf_nan=False, description="a number from 5 to 30"
    )


class StartMessage(_Message):
    """Opens a stream, or resumes a session."""

    type: Literal["start"]
    sample_rate: int = Field(default=16_000, ge=8000, le=48_000, description="an integer from 8000 to 48000")
    encoding: Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw", "flac", "ogg_opus", "ogg-opus"] = Field(
        default="pcm_s16le", description="one of pcm_s16le, pcm_f32le, mulaw, alaw, flac, ogg_opus"
    )
    channels: int = Field(default=1, ge=1, le=8, description="an integer from 1 to 8")
    decoder: str | None = Field(default=None, max_length=100, description="whisper, transducer, or null")
    language: str | None = Field(
        default=None, max_length=100, description="a language code such as en, or null"
    )
    chunk_ms: int | None = Field(
        default=None, ge=40, le=1000, multiple_of=20, description="an integer from 40 to 1000 in steps of 20"
    )
    right_context_ms: int | None = Field(
        default=None, ge=0, le=960, multiple_of=20, description="an integer from 0 to 960 in steps of 20"
    )
    latency: (
        Literal["minimal", "low", "medium", "high"]
        | Annotated[float, Field(ge=0, le=2000, allow_inf_nan=False)]
        | None
    ) = Field(
        default=None,
        description=f"one of {', '.join(LATENCY_MS)}, a number from 0 to 2000 (transducer only), or null",
    )
    beam_size: int = Field(default=1, ge=1, le=8, description="an integer from 1 to 8")
    interim: bool = Field(default=True, description="true or false")
    words: bool = Field(default=True, description="true or false")
    second_pass: bool = Field(default=False, description="true or false")
    endpointing: EndpointingFields = Field(
        default=EndpointingFields(), description="an object with silence_ms and max_segment_s"
    )
    prompt: str | None = Field(
        default=None, max_length=1000, description="a text of at most 1000 characters, or null"
    )
    hotwords: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(
        default=[], max_length=100, description="a list of at most 100 texts, each of 1 to 100 characters"
    )
    resume_token: str | None = Field(
        default=None, max_length=100, description="the resume_token of ready, or null"
    )
    last_seq: int = Field(default=0, ge=0, description="an integer of at least 0")


class FlushMessage(_Message):
    """Makes everything sent so far final."""

    type: Literal["flush"]


class StopMessage(_Message):
    """Ends the audio."""

    type: Literal["stop"]


class PingMessage(_Message):
    """Asks for a pong."""

    type: Literal["ping"]
    id: (
        Annotated[str, Field(max_length=100)]
        | Annotated[int, Field(ge=-_MAX_SAFE_INT, le=_MAX_SAFE_INT)]
        | None
    ) = Field(default=None, description="a text of at most 100 characters, an integer within 2^53, or null")


ClientMessage = Annotated[
    StartMessage | FlushMessage | StopMessage | PingMessage, Field(discriminator="type")
]
