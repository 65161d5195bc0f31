"""Every error code and close code that a client can meet; docs/protocol.md explains them."""

from __future__ import annotations

# After one of these everything is as it was before the frame that caused it.
RECOVERABLE_ERRORS = {
    "invalid_json": "a text frame that is no JSON",
    "not_an_object": "a text frame whose JSON is no object",
    "unknown_type": "a message whose type is missing or unknown",
    "invalid_field": "a field of the wrong type or outside its values; `field` names it",
    "not_started": "audio, flush or stop before start",
    "already_started": "a second start",
    "odd_length": "an audio frame that is no whole number of samples of every channel",
    "stopping": "audio or flush after stop",
}

# One of these is followed by the close code here.
FATAL_ERRORS = {
    "bad_audio": 4400,
    "unknown_resume_token": 4404,
    "idle_timeout": 4408,
    "session_limit": 4410,
    "too_many_errors": 4429,
    "model_error": 4500,
    "shutting_down": 1001,
}

CLOSE_CODES = {
    1000: "done, after stop",
    1001: "the server shuts down",
    1007: "a text frame that is not UTF-8",
    1009: "a message larger than the limit",
    4400: "bad_audio",
    4404: "unknown_resume_token",
    4408: "idle_timeout, or no start in time",
    4409: "a newer connection has resumed the session",
    4410: "session_limit",
    4429: "too_many_errors",
    4500: "model_error",
}
