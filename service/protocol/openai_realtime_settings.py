"""What a client of the OpenAI Realtime protocol can set: merged, checked, and turned into stream settings.

The GA dialect nests the settings (``audio.input.format``), the beta one has them side by side
(``input_audio_format``); inside there is one form, the GA one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.messages import Start
from service.protocol.dialect import Opening
from service.protocol.languages import known_codes
from service.stream_settings import AudioFormat

LOGPROBS = "item.input_audio_transcription.logprobs"
DELAY_MS = {"minimal": 80, "low": 160, "medium": 300, "high": 600, "xhigh": 1000}
EAGERNESS_MS = {"low": 1500, "medium": 800, "auto": 800, "high": 400}  # silence that ends a turn
_SILENCE_MS = (100, 5000)  # what the recogniser can wait for
_PROMPT_CHARS = 1000  # the model looks at the last 64 tokens
_FORMATS = {
    "audio/pcm": AudioFormat("pcm_s16le", 24_000),
    "audio/pcmu": AudioFormat("mulaw", 8000),
    "audio/pcma": AudioFormat("alaw", 8000),
}
_BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_BETA_FIELDS = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
_NULL_IS_A_VALUE = {"turn_detection", "noise_reduction"}  # null elsewhere is the default
_TYPES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
}
_TYPES |= {"dict": "an object", "NoneType": "null"}


class _Model(BaseModel):
    # Strict: "300" is no integer. Fields that only newer or other services know are ignored.
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Pcm(_Model):
    type: Literal["audio/pcm"]
    rate: Literal[24000] = 24000


class _Pcmu(_Model):
    type: Literal["audio/pcmu"]


class _Pcma(_Model):
    type: Literal["audio/pcma"]


class Transcription(_Model):
    """How speech is recognised; ``model`` is whatever the client calls it."""

    model: str = ""
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = None
    keywords: list[Annotated[str, Field(max_length=100)]] | None = Field(default=None, max_length=100)
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class ServerVad(_Model):
    """Turns end after a silence."""

    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0)
    silence_duration_ms: int = Field(default=500, ge=0)


class SemanticVad(_Model):
    """Turns end after a silence whose length follows from the eagerness."""

    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"


class _NoiseReduction(_Model):
    type: Literal["near_field", "far_field"] | None = None


class _Input(_Model):
    format: Annotated[_Pcm | _Pcmu | _Pcma, Field(discriminator="type")] = _Pcm(type="audio/pcm")
    transcription: Transcription = Transcription()
    noise_reduction: _NoiseReduction | None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = ServerVad(
        type="server_vad"
    )


class _Audio(_Model):
    input: _Input = _Input()


class _Session(_Model):
    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()
    include: list[str] = []


class ProtocolError(Exception):
    """What is wrong with an event, in the protocol's terms."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        """Say what is wrong and where."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


@dataclass(frozen=True)
class Settings:
    """A session's settings.

    Attributes:
        session: As the client knows them.
        opening: Of the connection: what the server has for the rest.
    """

    session: _Session
    opening: Opening

    @classmethod
    def default(cls, opening: Opening) -> Settings:
        """What holds before the first update.

        Args:
            opening: Its address may name a model.
        """
        model = next(iter(opening.query.get("model", ())), "") or opening.model
        return cls(_Session(audio=_Audio(input=_Input(transcription=Transcription(model=model)))), opening)

    @property
    def is_manual(self) -> bool:
        """Whether only the client's commits make items."""
        return self.session.audio.input.turn_detection is None

    @property
    def wants_logprobs(self) -> bool:
        """Whether to tell log probabilities."""
        return LOGPROBS in self.session.include

    @property
    def audio(self) -> AudioFormat:
        """What the client sends."""
        return _FORMATS[self.session.audio.input.format.type]

    @property
    def start(self) -> Start:
        """What is asked of the recogniser."""
        transcription = self.session.audio.input.transcription
        defaults = self.opening.defaults
        settings = replace(
            defaults.with_chunk_ms(DELAY_MS[transcription.delay]) if transcription.delay else defaults,
            latency=self._latency,
            language=self.language,
            prompt=(transcription.prompt or "")[-_PROMPT_CHARS:] or None,
            hotwords=tuple(word.strip() for word in transcription.keywords or () if word.strip()),
            second_pass=False,  # what has been told as a delta is never taken back
            silence_ms=self._silence_ms,
        )
        return Start(self.audio, settings, progress=True)

    @property
    def _latency(self) -> str | float | None:
        """The transducer's, where the server has chosen that."""
        delay, defaults = self.session.audio.input.transcription.delay, self.opening.defaults
        if delay is None or defaults.decoder != "transducer":
            return defaults.latency
        return "high" if delay == "xhigh" else delay

    @property
    def language(self) -> str | None:
        """The code of the language that is spoken; None is to be found out."""
        transcription, known = self.session.audio.input.transcription, self.opening.languages
        given = [transcription.language] if transcription.language else transcription.languages or []
        codes = known_codes(given, known)
        return codes.pop() if len(codes) == 1 else None

    def updated(self, update: Mapping[str, Any]) -> Settings:
        """Merge what an update names.

        Args:
            update: The event's ``session``, in either dialect's form.

        Returns:
            The new settings.

        Raises:
            ProtocolError: A value is wrong; nothing has changed.
        """
        nested = _nested(update)
        try:
            session = _Session.model_validate(_merged(self.session.model_dump(), nested))
        except ValidationError as error:
            raise _problem(error.errors()[0], update) from error
        changed = replace(self, session=self._with_model(session))
        changed._check_language(update)
        return changed

    def _with_model(self, session: _Session) -> _Session:
        transcription = session.audio.input.transcription
        if transcription.model:
            return session
        default = Settings.default(self.opening).session.audio.input.transcription.model
        named = transcription.model_copy(update={"model": default})
        inside = session.audio.input.model_copy(update={"transcription": named})
        return session.model_copy(update={"audio": _Audio(input=inside)})

    def _check_language(self, update: Mapping[str, Any]) -> None:
        transcription, known = self.session.audio.input.transcription, self.opening.languages
        for name, values in (
            ("language", [transcription.language or ""]),
            ("languages", transcription.languages or []),
        ):
            named = [value for value in values if value.strip()]
            if named and not known_codes(named, known):
                param = _param(("audio", "input", "transcription", name), update)
                raise invalid_value(named[0], known, param)

    @property
    def _silence_ms(self) -> int:
        turns = self.session.audio.input.turn_detection
        match turns:
            case ServerVad():
                least, most = _SILENCE_MS
                return min(max(turns.silence_duration_ms, least), most)
            case SemanticVad():
                return EAGERNESS_MS[turns.eagerness]
        return self.opening.defaults.silence_ms

    def as_ga(self) -> dict[str, Any]:
        """The settings as a GA session object has them."""
        body = self.session.model_dump()
        transcription = body["audio"]["input"]["transcription"]
        for name in ("languages", "keywords", "delay"):
            if transcription[name] is None:
                del transcription[name]
        return body

    def as_beta(self) -> dict[str, Any]:
        """The settings as a beta session object has them."""
        inside = self.as_ga()["audio"]["input"]
        names = {ga: beta for beta, ga in _BETA_FORMATS.items()}
        body = {beta: inside[ga] for beta, ga in _BETA_FIELDS.items()}
        return body | {"input_audio_format": names[inside["format"]["type"]], "include": self.session.include}


def invalid_value(value: object, supported: Sequence[object], param: str | None) -> ProtocolError:
    """Return the error for a value that is none of those supported.

    Args:
        value: What was given.
        supported: What could have been.
        param: Where.
    """
    expected = ", ".join(f"'{each}'" for each in supported)
    shown = f"'{value}'" if isinstance(value, str) else str(value)
    return ProtocolError(
        "invalid_value", f"Invalid value: {shown[:60]}. Supported values are: {expected}.", param
    )


def invalid_type(value: object, expected: str, param: str) -> ProtocolError:
    """Return the error for a value of another type than expected.

    Args:
        value: What was given.
        expected: Such as ``a string``.
        param: Where.
    """
    given = _TYPES.get(type(value).__name__, "something else")
    message = f"Invalid type for '{param}': expected {expected}, but got {given} instead."
    return ProtocolError("invalid_type", message, param)


def missing(param: str) -> ProtocolError:
    """Return the error for a field that has to be there.

    Args:
        param: Its name.
    """
    return ProtocolError("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


def _nested(update: Mapping[str, Any]) -> dict[str, Any]:
    """An update in the GA form."""
    nested = {key: value for key, value in update.items() if key not in _BETA_FIELDS}
    beta = {ga: update[name] for name, ga in _BETA_FIELDS.items() if name in update}
    if isinstance(name := beta.get("format"), str):
        beta["format"] = {"type": _BETA_FORMATS.get(name, name)}
    if beta:
        audio = nested.get("audio")
        inside = audio.get("input") if isinstance(audio, dict) else None
        nested["audio"] = {"input": {**beta, **(inside if isinstance(inside, dict) else {})}}
    return nested


def _merged(current: dict[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """What an update leaves out stays; null is the default, or off; another type is another thing."""
    is_other = "type" in update and current.get("type", update["type"]) != update["type"]
    merged = {} if is_other else dict(current)
    for key, value in update.items():
        before = merged.get(key)
        if value is None and key not in _NULL_IS_A_VALUE:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = _merged(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _param(location: Sequence[object], update: Mapping[str, Any]) -> str:
    """The name of a field as the client wrote it."""
    parts = [str(each) for each in location if str(each) not in (*_FORMATS, "server_vad", "semantic_vad")]
    for beta, ga in _BETA_FIELDS.items():
        if beta in update and parts[:3] == ["audio", "input", ga]:
            parts[:3] = [beta]
            break
    return ".".join(["session", *parts])


def _problem(details: Mapping[str, Any], update: Mapping[str, Any]) -> ProtocolError:
    """What pydantic found, in the protocol's terms."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    location = details["loc"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = value.get("type") if isinstance(value, dict) else value
        is_format = location[-1] == "format"
        names: Sequence[str] = tuple(_FORMATS) if is_format else ("server_vad", "semantic_vad")
        if is_format and "input_audio_format" in update:
            return invalid_value(given, tuple(_BETA_FORMATS), _param(location, update))
        if kind == "union_tag_not_found":
            return missing(f"{_param(location, update)}.type")
        return invalid_value(given, names, f"{_param(location, update)}.type")
    param = _param(location, update)
    if kind == "literal_error":
        return invalid_value(
            value, [each.strip("' ") for each in context["expected"].replace(" or ", ",").split(",")], param
        )
    if kind in ("less_than_equal", "greater_than_equal"):
        bound = context.get("le", context.get("ge"))
        side = "<=" if kind == "less_than_equal" else ">="
        return ProtocolError(
            "invalid_value", f"Invalid '{param}': {value}. Expected a value {side} {bound}.", param
        )
    if kind == "too_long":
        message = f"Invalid '{param}': array too long. Expected an array with maximum length 100."
        return ProtocolError("array_above_max_length", message, param)
    if kind == "string_too_long":
        message = f"Invalid '{param}': string too long. Expected a string with maximum length 100."
        return ProtocolError("string_above_max_length", message, param)
    expected = {"string_type": "a string", "int_type": "an integer", "float_type": "a number"}
    expected |= {"list_type": "an array of strings"}
    return invalid_type(value, expected.get(kind, "an object"), param)
