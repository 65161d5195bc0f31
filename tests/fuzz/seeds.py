"""Where fuzzing begins: recordings of every kind, and messages of every protocol."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import soundfile

from tests.fuzz.targets import join_frames
from tests.test_compressed import contained_samples, opus_packets

_SAMPLES = 0.3 * np.sin(np.arange(4000) / 7).astype(np.float32)
_AUDIO = _SAMPLES.astype("<f4").tobytes()[:400]
_SPOKEN = base64.b64encode(_AUDIO).decode()


def _sound(container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, _SAMPLES, 16_000, format=container, subtype=subtype)
    return file.getvalue()


def _texts(*messages: dict[str, object]) -> list[str | bytes]:
    return [json.dumps(message) for message in messages]


def _form(stream: str) -> bytes:
    """A form up to the recording's first byte."""
    fields = {"model": "a", "stream": stream, "response_format": "json", "keywords[]": "a"}
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields
    ]
    file = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return "".join([*parts, file]).encode()


def _head(path: str) -> bytes:
    """Of a websocket's handshake."""
    fields = {
        "Host": "127.0.0.1",
        "Origin": "http://127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Authorization": "Bearer alpha",
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def recordings() -> dict[str, list[bytes]]:
    """By target; the first byte of those that arrive in pieces is the pieces' size."""
    flac, ogg = _sound("FLAC", "PCM_16"), _sound("OGG", "OPUS")
    wavs = [_sound("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW")]
    webm = contained_samples(_SAMPLES, "webm", "libopus")
    mp3 = _sound("MP3", "MPEG_LAYER_III")
    every = [flac, ogg, *wavs, webm, mp3]
    packets = opus_packets()[:3]
    return {
        "flac": [b"\x01" + flac, b"\xff" + flac],
        "ogg_opus": [b"\x01" + ogg, b"\xff" + ogg],
        "opus": [b"\x08" + packet for packet in packets] + [b"\xff" + ogg, b"\xff" + webm],
        "container": [b"\x10" + each for each in every],
        "upload": every,
        "file": every,
        "standard_input": wavs,
        "plain": [bytes([kind]) + _AUDIO for kind in (0, 1, 2, 3, 5, 17, 37)],
    }


def conversations() -> dict[str, list[bytes]]:
    """By target, see :func:`tests.fuzz.targets.join_frames`."""
    native = _texts(
        {"type": "start", "sample_rate": 8000, "encoding": "mulaw", "channels": 2, "hotwords": ["a"]},
        {"type": "flush"},
        {"type": "ping", "id": 7},
        {"type": "stop"},
    )
    update = {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "whisper-1", "language": "en", "prompt": "p"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 300},
            }
        },
    }
    openai = _texts(
        {"type": "session.update", "event_id": "e", "session": update},
        {"type": "input_audio_buffer.append", "audio": _SPOKEN},
        {"type": "input_audio_buffer.commit"},
        {"type": "input_audio_buffer.clear"},
        {"type": "conversation.item.retrieve", "item_id": "item_0"},
        {"type": "response.create"},
    )
    query = "encoding=linear16&sample_rate=16000&interim_results=true&utterance_end_ms=1000&keyterm=a&tag=b"
    deepgram = _texts({"type": "KeepAlive"}, {"type": "Finalize"}, {"type": "CloseStream"})
    vosk = _texts({"config": {"sample_rate": 8000, "words": True, "phrase_list": ["a"]}}, {"eof": 1})
    final = {"type": "final", "seq": 1, "segment": 0, "text": "a", "words": [], "start": 0.0, "end": 1.0}
    server = _texts(
        final | {"second_pass": False, "time": 1.0},
        {"type": "ack", "samples": 1, "bytes": 2},
        {"type": "speech_started", "time": 0.5, "seq": 2},
        {"type": "done", "audio_s": 1.0, "real_time_factor": 0.1, "reason": "stop", "seq": 3},
        {"type": "error", "code": "x", "message": "m", "fatal": True},
    )
    return {
        "native": [join_frames([native[0], _AUDIO, *native[1:]])],
        "openai": [join_frames(openai), join_frames(openai[1:])],
        "deepgram": [join_frames([query, _AUDIO, *deepgram]), join_frames(["", b"RIFF", b""])],
        "vosk": [join_frames([vosk[0], _AUDIO, vosk[1]])],
        "server_messages": [join_frames(server)],
        "rest_fields": [b"model=a&language=en&response_format=json&stream=true&keywords[]=a&temperature=0"],
        "rest_body": [
            b"\x02" + _form(stream) + _sound("WAV", "PCM_16") + b"\r\n--b--\r\n" for stream in ("1", "0")
        ],
        "handshake": [
            _head(path) for path in ("/v1/stream?token=alpha", "/v1/listen?encoding=linear16", "/")
        ],
        "tokens": [b"# comment\nalpha\n\n  beta \n", b"\xff\n"],
    }


def seeds() -> dict[str, list[bytes]]:
    """Every target's."""
    return recordings() | conversations()
