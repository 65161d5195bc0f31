"""A transcription as OpenAI's REST clients read it: a body for each response format, events for a stream."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

from asr.events import Final, Partial, Word
from asr.subtitles import one_line, srt, vtt
from service.protocol.openai_realtime_items import Item
from service.rest_request import TranscriptionRequest

JSON, TEXT = "application/json", "text/plain; charset=utf-8"
_LEAST_CONFIDENCE = 1e-9


def body(finals: Sequence[Final], *, audio_s: float, request: TranscriptionRequest) -> tuple[str, str]:
    """Return a whole transcription and its media type.

    Args:
        finals: All segments.
        audio_s: Length of the recording.
        request: What the client asked for.
    """
    finals = [final for final in finals if final.text.strip()]
    text = " ".join(one_line(final.text) for final in finals)
    match request.response_format:
        case "text":
            return f"{text}\n", TEXT
        case "srt":
            return srt(finals), TEXT
        case "vtt":
            return vtt(finals), TEXT
    usage = {"type": "duration", "seconds": round(audio_s, 3)}
    result: dict[str, Any] = {"text": text, "usage": usage}
    if request.response_format == "verbose_json":
        result = {"task": "transcribe", "language": request.language, "duration": round(audio_s, 3)} | result
        if "segment" in request.granularities:
            result["segments"] = [_segment(i, final) for i, final in enumerate(finals)]
        if "word" in request.granularities:
            result["words"] = [_word(word) for final in finals for word in final.words]
    if request.wants_logprobs:
        result["logprobs"] = [_logprob_body(word) for final in finals for word in final.words]
    return json.dumps(result, ensure_ascii=False), JSON


class EventStream:
    """Server-sent events of a transcription that is still going on."""

    def __init__(self, *, logprobs: bool) -> None:
        """Begin.

        Args:
            logprobs: Tell log probabilities.
        """
        self._item = Item("")
        self._logprobs = logprobs

    def tell(self, event: Partial | Final) -> str:
        """What is new, possibly nothing.

        Args:
            event: More of a segment, or all of it.
        """
        if isinstance(event, Final):
            news = self._item.close_segment(event, logprobs=self._logprobs)
        else:
            news = self._item.read(event.committed, event.words, logprobs=self._logprobs)
        names = ("delta", "words", "logprobs")
        return "".join(
            _sse({"type": "transcript.text.delta", **{name: each[name] for name in names if name in each}})
            for each in news
        )

    def done(self) -> str:
        """The whole text."""
        completed = self._item.completed(logprobs=self._logprobs)
        event = {"type": "transcript.text.done", "text": completed["transcript"], "words": completed["words"]}
        if self._logprobs:
            event["logprobs"] = completed["logprobs"]
        return _sse(event)


def failure(error: dict[str, Any]) -> str:
    """A stream's last event where something went wrong.

    Args:
        error: As in an error's body.
    """
    return _sse({"error": error})


def _sse(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _segment(index: int, final: Final) -> dict[str, Any]:
    """A segment with the fields of Whisper's JSON; what this recogniser does not know is empty or zero."""
    logprobs = [_logprob(word) for word in final.words]
    text = one_line(final.text).encode()
    return {
        "id": index,
        "seek": round(100 * final.start_s),
        "start": round(final.start_s, 3),
        "end": round(final.end_s, 3),
        "text": one_line(final.text),
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(sum(logprobs) / len(logprobs), 4) if logprobs else 0.0,
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
    }


def _word(word: Word) -> dict[str, Any]:
    return {
        "word": word.text,
        "start": round(word.start_s, 3),
        "end": round(word.end_s, 3),
        "confidence": round(word.confidence, 4),
    }


def _logprob_body(word: Word) -> dict[str, Any]:
    return {"token": word.text, "logprob": round(_logprob(word), 4), "bytes": list(word.text.encode())}


def _logprob(word: Word) -> float:
    return math.log(max(word.confidence, _LEAST_CONFIDENCE))
