"""What each protocol costs: time to the first text and latency of words, for one clip at the speed of speech.

Starts a real server and plays the same clip into it through the native protocol, OpenAI Realtime, Deepgram
and Vosk, one after another, several times, with the same settings and nothing but a websocket as the client.
A word's latency is the time on the wall from the moment at which its end was spoken to the moment at which
the client had so many words to show, and again to the moment at which it was told that the word stays; its
end is where the stream's own final puts it. OpenAI's deltas are never taken back, so there the two are one.
The last line of the output is one JSON object; ratios are to the native protocol in the same run.

Run as ``python -m benchmarks.protocols --rounds 5``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from websockets.asyncio.client import ClientConnection, connect

from asr import SAMPLE_RATE, ForesoundError
from asr.audio import read_audio
from benchmarks.machine import machine
from benchmarks.server import ServerProcess
from training.metrics import percentiles

CLIP = Path(__file__).parent.parent / "tests" / "fixtures" / "jfk.flac"
BLOCK_S = 0.1  # a client's block
SILENCE_MS = 800  # that ends a segment, in every protocol
_PATIENCE_S = 30.0  # for the rest, once the clip is over

Message = dict[str, Any]


@dataclass
class Screen:
    """What a client has to show; times are in seconds since the clip began.

    Attributes:
        clock: Says how long the clip has been playing.
        shown_s: When there were so many words, whatever becomes of them.
        kept_s: When there were so many words that stay.
        ends_s: Where the final words end.
    """

    clock: Callable[[], float]
    shown_s: list[float] = field(default_factory=list)
    kept_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)

    def show(self, *, kept: str = "", draft: str = "") -> None:
        """Show a text behind the words that are final.

        Args:
            kept: The beginning that stays.
            draft: The rest, which may change.
        """
        n_final, n_kept, n_draft = len(self.ends_s), len(kept.split()), len(draft.split())
        self._stamp(self.kept_s, n_final + n_kept)
        self._stamp(self.shown_s, n_final + n_kept + n_draft)

    def close(self, words: Sequence[Message]) -> None:
        """Take the final words of a segment.

        Args:
            words: Each with its ``end`` in seconds.
        """
        self.ends_s += [word["end"] for word in words]
        self.show()

    def _stamp(self, times: list[float], n_words: int) -> None:
        times += [self.clock()] * (n_words - len(times))


def native(message: Message, screen: Screen) -> bool:
    """Read a message of the native protocol; tell whether it was the last one."""
    match message["type"]:
        case "partial":
            screen.show(kept=message["committed"], draft=message["draft"])
        case "final":
            screen.close(message["words"])
    return bool(message["type"] == "done")


class OpenAI:
    """Reads events of OpenAI Realtime; without turn detection the clip is one item."""

    def __init__(self) -> None:
        """Begin without a text."""
        self._text = ""

    def __call__(self, message: Message, screen: Screen) -> bool:
        """Read an event; tell whether it was the last one."""
        match message["type"].rpartition(".")[2]:
            case "delta":
                self._text += message["delta"]
                screen.show(kept=self._text)
            case "completed":
                screen.close(message["words"])
                return True
        return False


def deepgram(message: Message, screen: Screen) -> bool:
    """Read a message of Deepgram's; tell whether it was the last one."""
    if message["type"] == "Results":
        best = message["channel"]["alternatives"][0]
        if message["is_final"]:
            screen.close(best["words"])
        else:
            screen.show(draft=best["transcript"])
    return bool(message["type"] == "Metadata")


def vosk(message: Message, screen: Screen) -> bool:
    """Read a reply of vosk-server's protocol; the connection is closed after the last one."""
    screen.show(draft=message.get("partial", ""))
    screen.close(message.get("result", ()))
    return False


@dataclass(frozen=True)
class Protocol:
    """How a clip is sent.

    Attributes:
        name: In the table.
        reader: Makes what reads one connection's messages.
        path: On the server's port; None for the port of vosk-server's protocol.
        hello: What is sent first.
        goodbye: What is sent last.
        sample_rate: Of the audio.
        is_lockstep: Wait for a reply to every block.
        frame: A block as it is sent.
    """

    name: str
    reader: Callable[[], Callable[[Message, Screen], bool]]
    path: str | None
    hello: str | None
    goodbye: str
    sample_rate: int = SAMPLE_RATE
    is_lockstep: bool = False
    frame: Callable[[bytes], str | bytes] = bytes

    async def play(self, server: ServerProcess, clip: np.ndarray) -> Screen:
        """Send a clip at the speed of speech.

        Args:
            server: Where.
            clip: int16 samples ``[N]`` at the protocol's rate.
        """
        url = server.vosk_url if self.path is None else server.url.replace("/v1/stream", self.path)
        async with connect(url, compression=None) as websocket:
            if self.hello:
                await websocket.send(self.hello)
            started = time.perf_counter()
            screen, replies = Screen(lambda: time.perf_counter() - started), asyncio.Semaphore(0)
            speaking = asyncio.create_task(self._speak(websocket, clip, started, replies))
            listening = self._listen(websocket, screen, replies)
            await asyncio.wait_for(listening, len(clip) / self.sample_rate + _PATIENCE_S)
            await speaking
        return screen

    async def _listen(self, websocket: ClientConnection, screen: Screen, replies: asyncio.Semaphore) -> None:
        read = self.reader()
        async for text in websocket:
            if read(json.loads(text), screen):
                break
            replies.release()

    async def _speak(
        self, websocket: ClientConnection, clip: np.ndarray, started: float, replies: asyncio.Semaphore
    ) -> None:
        size = int(BLOCK_S * self.sample_rate)
        for start in range(0, len(clip), size):
            block = clip[start : start + size]
            due = started + (start + len(block)) / self.sample_rate  # when its end was spoken
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await websocket.send(self.frame(block.tobytes()))
            if self.is_lockstep:
                await replies.acquire()
        await websocket.send(self.goodbye)


def _append(block: bytes) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(block).decode()})


_TRANSCRIPTION = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
_START = {"type": "start", "endpointing": {"silence_ms": SILENCE_MS}}
PROTOCOLS = (
    Protocol("native", lambda: native, "/v1/stream", json.dumps(_START), '{"type": "stop"}'),
    Protocol(
        "openai",
        OpenAI,
        "/v1/realtime?intent=transcription",
        json.dumps({"type": "session.update", "session": _TRANSCRIPTION}),
        '{"type": "input_audio_buffer.commit"}',
        sample_rate=24_000,
        frame=_append,
    ),
    Protocol(
        "deepgram",
        lambda: deepgram,
        f"/v1/listen?encoding=linear16&sample_rate=16000&interim_results=true&endpointing={SILENCE_MS}",
        None,
        '{"type": "CloseStream"}',
    ),
    Protocol(
        "vosk", lambda: vosk, None, '{"config": {"sample_rate": 16000}}', '{"eof" : 1}', is_lockstep=True
    ),
)


def load_clip(path: Path, *, sample_rate: int) -> np.ndarray:
    """Read a recording.

    Args:
        path: Of any kind.
        sample_rate: That is wanted.

    Returns:
        int16 samples ``[N]``.
    """
    with read_audio(path) as audio:
        samples = np.concatenate(list(audio.blocks(block_s=1.0)))
    return (np.clip(soxr.resample(samples, SAMPLE_RATE, sample_rate), -1, 1) * 32767).astype(np.int16)


def summarize(screens: Sequence[Screen]) -> dict[str, Any]:
    """Sum up what one protocol gave in all rounds, in milliseconds."""

    def latencies(stamps: Callable[[Screen], list[float]]) -> dict[str, float]:
        found = [
            1000 * (at - end)
            for each in screens
            for at, end in zip(stamps(each), each.ends_s, strict=False)  # a draft may have had more words
        ]
        return percentiles(found) or {}

    shown, kept = latencies(lambda each: each.shown_s), latencies(lambda each: each.kept_s)
    return {
        "words": len(screens[0].ends_s),
        "first_text_ms": round(1000 * statistics.median(each.shown_s[0] for each in screens)),
        **{f"shown_{name}_ms": round(value) for name, value in shown.items()},
        **{f"kept_{name}_ms": round(value) for name, value in kept.items()},
    }


def with_ratios(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Set every time in relation to the native protocol's."""
    base = rows["native"]
    return {
        name: row | {f"{key}_to_native": round(row[key] / base[key], 3) for key in row if key.endswith("_ms")}
        for name, row in rows.items()
    }


async def run(server: ServerProcess, audio: Path, *, n_rounds: int) -> dict[str, dict[str, Any]]:
    """Play the clip through every protocol in turn; the first round, which is slow, is left out.

    Args:
        server: Where.
        audio: The clip.
        n_rounds: How often.
    """
    clips = {rate: load_clip(audio, sample_rate=rate) for rate in {each.sample_rate for each in PROTOCOLS}}
    screens: dict[str, list[Screen]] = {each.name: [] for each in PROTOCOLS}
    for i in range(n_rounds + 1):
        for each in (*PROTOCOLS[i % len(PROTOCOLS) :], *PROTOCOLS[: i % len(PROTOCOLS)]):
            screen = await each.play(server, clips[each.sample_rate])
            if not screen.ends_s:
                raise ForesoundError(f"{audio}: no word was recognised; choose a clip with speech in it")
            screens[each.name] += [screen] if i else []
        print(f"round {i} of {n_rounds}", file=sys.stderr, flush=True)
    return with_ratios({name: summarize(found) for name, found in screens.items()})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    try:
        # A place is free a moment after its client has seen its connection close.
        with ServerProcess(model=args.model, max_streams=2, threads=args.threads, has_vosk=True) as server:
            rows = asyncio.run(run(server, args.audio, n_rounds=args.rounds))
    except ForesoundError as error:
        print(f"protocols: {error}", file=sys.stderr)
        return 2
    print("protocol   first text   shown p50 / p95     kept p50 / p95      shown p50 to native")
    for name, row in rows.items():
        print(
            f"{name:9}  {row['first_text_ms']:7d} ms   "
            f"{row['shown_p50_ms']:5d} / {row['shown_p95_ms']:5d} ms   "
            f"{row['kept_p50_ms']:5d} / {row['kept_p95_ms']:5d} ms   {row['shown_p50_ms_to_native']:19.2f}"
        )
    about = {"benchmark": "protocols", "model": args.model, "audio": args.audio.name, "rounds": args.rounds}
    print(json.dumps({**about, "protocols": rows, **machine()}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time to the first text and word latency by protocol.")
    add = parser.add_argument
    add("--audio", type=Path, default=CLIP, help="the clip (default: the one of the tests)")
    add("--rounds", type=int, default=3, metavar="N", help="how often each protocol plays it (default: 3)")
    add("--model", default="tiny.en")
    add("--threads", type=int, metavar="N", help="of the server's model (default: the server's)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
