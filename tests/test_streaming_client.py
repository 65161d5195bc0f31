"""The client against a fake server: events, encodings, back-pressure, refusals, broken connections."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_recognizer import FakeStream
from fake_server import BLOCK, FakeServer, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import AudioError, OptionError
from asr.events import SAMPLE_RATE, Event, Final, Partial, Word, event_to_dict
from clients import StreamingClient
from clients.errors import ConnectionLostError, ServerError, StreamingError, UnreachableError
from clients.inbox import Inbox
from clients.messages import Done, parse
from clients.outbox import Outbox

ROOT = Path(__file__).parents[1]
MS = 0.001
QUICK = {"first_delay_s": 1 * MS}


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).integers(-3000, 3000, round(seconds * SAMPLE_RATE)).astype(np.int16)


def local_events(samples: np.ndarray) -> list[Event]:
    """Returns what a local stream tells when it is fed in the server's blocks."""
    stream = FakeStream(second_pass=False, crash_at=None)
    blocks = np.split(samples.astype(np.float32), range(BLOCK, len(samples), BLOCK))
    return [*itertools.chain.from_iterable(map(stream.feed, blocks)), *stream.finish()]


def run(test: Coroutine[Any, Any, None]) -> None:
    """Runs a test, which must neither hang nor leave tasks behind."""

    async def check() -> None:
        await asyncio.wait_for(test, 20)
        for _ in range(100):  # the server's own tasks are ending
            if len(asyncio.all_tasks()) == 1:
                return
            await asyncio.sleep(10 * MS)
        raise AssertionError(asyncio.all_tasks())

    asyncio.run(check())


async def feed(client: StreamingClient, samples: np.ndarray, *, flush_at: int | None = None) -> Done:
    for start in range(0, len(samples), BLOCK):
        if flush_at is not None and start == flush_at:
            await client.flush()
        await client.send(samples[start : start + BLOCK])
    return await client.finish()


async def collect(client: StreamingClient, events: list[Event]) -> None:
    async for event in client:
        events.append(event)


async def converse(
    server: FakeServer, samples: np.ndarray, *, flush_at: int | None = None, **options: Any
) -> list[Event]:
    events: list[Event] = []
    async with StreamingClient(server.url, **options) as client:
        await asyncio.gather(feed(client, samples, flush_at=flush_at), collect(client, events))
    return events


def test_events_are_those_of_a_local_stream() -> None:
    """Words, times and texts come back as the types of asr.events, in order."""

    async def test() -> None:
        async with FakeServer().running() as server:
            samples = noise(3.3)
            assert await converse(server, samples) == local_events(samples)

    run(test())


def test_one_task_may_send_everything_and_read_afterwards() -> None:
    """finish() needs no reader; it tells the length and the server's speed."""

    async def test() -> None:
        async with FakeServer().running() as server, StreamingClient(server.url) as client:
            assert (client.ready.model, client.ready.resumed) == ("fake", False)
            await client.send(noise(3.0))
            done = Done(audio_s=3.0, real_time_factor=0.25, reason="stop")
            assert await client.finish() == done and await client.finish() == done
            texts = [event.text async for event in client if isinstance(event, Final)]
            assert texts == ["w0 w1 w2 w3", "w4 w5"]
            with pytest.raises(StreamingError, match="finished"):
                await client.send(b"")

    run(test())


@pytest.mark.parametrize(
    ("encoding", "audio"),
    [
        ("pcm_s16le", noise(1.0)),
        ("pcm_s16le", noise(1.0).astype(np.float32) / 32768),
        ("pcm_s16le", noise(1.0).reshape(-1, 1)),
        ("pcm_s16le", noise(1.0).tobytes()),
        ("pcm_f32le", noise(1.0)),
        ("pcm_f32le", memoryview((noise(1.0).astype("<f4") / 32768).tobytes())),
    ],
)
def test_every_form_of_audio_arrives_as_it_was(encoding: str, audio: Any) -> None:
    """Arrays and bytes in both encodings are the same samples for the server."""

    async def test() -> None:
        async with FakeServer().running() as server:
            heard: list[np.ndarray] = []
            async with StreamingClient(server.url, encoding=encoding) as client:
                (session,) = server.sessions.values()
                session.stream.feed = lambda block: heard.append(block) or []  # type: ignore[method-assign]
                await client.send(audio)
                await client.finish()
            assert np.array_equal(np.concatenate(heard) * 32768, noise(1.0))

    run(test())


@pytest.mark.parametrize(
    ("options", "audio", "message"),
    [
        ({}, b"123", "3 bytes are no whole number of pcm_s16le samples with 1 channels"),
        ({"channels": 2}, b"123456", "whole number"),
        ({}, np.zeros((5, 2), np.int16), r"shape \[5, 2\]; expected \[n_samples, 1\] or \[n_samples\]"),
        ({"channels": 2}, np.zeros(6, np.int16), r"expected \[n_samples, 2\]"),
        ({}, np.zeros((2, 2, 2), np.int16), "shape"),
        ({}, np.array(1.0), "shape"),
        ({}, np.array([0.0, np.nan]), "not a finite number"),
        ({}, np.array([1, 2]), "int16"),
        ({"encoding": "mulaw"}, np.zeros(5, np.int16), "pass bytes"),
    ],
)
def test_audio_that_cannot_be_sent(options: dict[str, Any], audio: Any, message: str) -> None:
    """The mistake is told at once, and the stream goes on."""

    async def test() -> None:
        async with FakeServer().running() as server, StreamingClient(server.url, **options) as client:
            with pytest.raises(AudioError, match=message):
                await client.send(audio)
            await client.send(b"")
            assert client._failure is None

    run(test())


def test_settings_reach_the_server_and_defaults_are_its_own() -> None:
    """What is None is left out of start."""

    async def test() -> None:
        async with FakeServer().running() as server:
            async with StreamingClient(server.url):
                pass
            flags = {"interim": True, "words": True, "second_pass": False}
            audio = {"sample_rate": 16_000, "encoding": "pcm_s16le", "channels": 1}
            assert server.starts == [{"type": "start", **audio, **flags}]
            more = {"language": "en", "chunk_ms": 80, "beam_size": 3, "prompt": "Hi.", "hotwords": ["a", "ß"]}
            async with StreamingClient(server.url, silence_ms=500, **more):  # type: ignore[arg-type]
                pass
            assert server.starts[1].items() >= {**more, "endpointing": {"silence_ms": 500}}.items()

    run(test())


def test_flush_makes_finals_and_the_stream_goes_on() -> None:
    """When flush() returns, the finals of everything before it can be read."""

    async def test() -> None:
        async with FakeServer().running() as server, StreamingClient(server.url) as client:
            await client.send(noise(1.0))
            assert (await client.flush()).n_samples == SAMPLE_RATE
            assert [e.text for e in client._inbox.events if isinstance(e, Final)] == ["w0 w1"]
            await asyncio.gather(*(client.flush() for _ in range(20)))
            await client.send(noise(0.5))
            await client.finish()
            assert [e.text async for e in client if isinstance(e, Final)] == ["w0 w1", "w2"]

    run(test())


cuts = st.lists(st.integers(0, 60), max_size=6)


@settings(max_examples=25, deadline=None)
@given(cuts=cuts, flush_at=st.sampled_from([None, BLOCK, 15 * BLOCK]))
def test_a_stream_that_is_cut_anywhere_is_the_same_stream(cuts: list[int], flush_at: int | None) -> None:
    """Every event comes exactly once, in order, wherever connections break; only drafts may be missing."""

    async def test() -> None:
        samples = noise(3.0)
        async with FakeServer(acknowledge_bytes=8000).running() as whole:
            expected = await converse(whole, samples, flush_at=flush_at)
        cuts_after_start = [max(cuts[0], 2), *cuts[1:]] if cuts else []
        async with FakeServer(acknowledge_bytes=8000, cuts=cuts_after_start).running() as server:
            events = await converse(server, samples, flush_at=flush_at, **QUICK)
            (session,) = server.sessions.values()
            assert session.n_bytes == 2 * len(samples)
            assert len(server.requests) > (bool(cuts) and cuts[0] < 30)
        kept = [event for event in events if not isinstance(event, Partial)]
        assert kept == [event for event in expected if not isinstance(event, Partial)]
        rest = iter(expected)
        assert all(event in rest for event in events)  # a subsequence: nothing twice or out of order

    run(test())


def test_a_resumed_stream_says_what_it_has() -> None:
    """The server is told the newest number that was received, and its refusal to resume may be an error."""

    async def test() -> None:
        async with (
            FakeServer().running() as server,
            StreamingClient(server.url, restart=False, **QUICK) as client,
        ):
            await client.send(noise(2.0))
            await client.flush()
            server.cut()
            await client.flush()
            assert client.ready.resumed and client.acknowledged.n_samples == 2 * SAMPLE_RATE
            assert server.starts[1].items() >= {"resume_token": "token-0", "last_seq": 3}.items()
            server.sessions.clear()
            server.cut()
            with pytest.raises(ServerError, match="no such stream") as caught:
                await client.finish()
            assert (caught.value.code, caught.value.fatal) == ("unknown_resume_token", True)

    run(test())


@settings(max_examples=25, deadline=None)
@given(losses=st.sets(st.integers(1, 29), max_size=4), flush_at=st.sampled_from([None, 15 * BLOCK]))
def test_a_server_that_loses_its_streams_costs_no_word(losses: set[int], flush_at: int | None) -> None:
    """Wherever the server forgets everything, words follow one another in time: none lost, none twice."""

    async def test() -> None:
        events: list[Event] = []
        async with (
            FakeServer(acknowledge_bytes=8000).running() as server,
            StreamingClient(server.url, **QUICK) as client,
        ):

            async def speak() -> Done:
                for block in range(30):
                    if block in losses:
                        server.sessions.clear()
                        server.cut()
                        await asyncio.sleep(5 * MS)
                    if flush_at == block * BLOCK:
                        await client.flush()
                    await client.send(noise(3.0)[block * BLOCK : (block + 1) * BLOCK])
                return await client.finish()

            done, _ = await asyncio.gather(speak(), collect(client, events))
            assert done.audio_s == pytest.approx(3.0) and client.n_restarts <= len(losses)
        finals = [event for event in events if isinstance(event, Final)]
        words = [word for final in finals for word in final.words]
        assert [word.start for word in words] == [n * SAMPLE_RATE // 2 for n in range(6)]
        assert [final.segment for final in finals] == list(range(len(finals)))
        assert [final.start for final in finals] == [0, *(final.end for final in finals[:-1])]
        assert [event.time for event in events] == sorted(event.time for event in events)

    run(test())


@pytest.mark.parametrize("options", [{"encoding": "flac"}, {"restart": False}])
def test_what_cannot_be_said_again_is_an_error(options: dict[str, Any]) -> None:
    """Compressed audio has no place in its middle at which another stream could begin."""

    async def test() -> None:
        async with (
            FakeServer().running() as server,
            StreamingClient(server.url, **options, **QUICK) as client,
        ):
            server.sessions.clear()
            server.cut()
            with pytest.raises(ServerError, match="no such stream"):
                await client.finish()
            assert client.n_restarts == 0

    run(test())


def test_sending_waits_for_acknowledgements() -> None:
    """Without them the client keeps a bounded amount of audio and puts less than that on the way."""

    async def test() -> None:
        async with (
            FakeServer(acknowledge_bytes=None).running() as server,
            StreamingClient(server.url, max_buffered_s=8.0) as client,
        ):
            task = asyncio.create_task(feed(client, noise(20.0)))
            await asyncio.sleep(100 * MS)
            (session,) = server.sessions.values()
            assert not task.done()
            assert client._outbox.n_kept == 8 * 2 * SAMPLE_RATE
            assert 5.0 <= session.n_bytes / (2 * SAMPLE_RATE) <= 5.3
            server.acknowledge_bytes = 1000
            server.cut()  # resuming acknowledges
            assert (await task).audio_s == 20.0

    run(test())


def test_a_server_that_vanishes_for_good() -> None:
    """What was received is read first; then every call tells that the connection is lost."""

    async def test() -> None:
        async with (
            FakeServer().running() as server,
            StreamingClient(server.url, reconnect_s=0.2, **QUICK) as client,
        ):
            await client.send(noise(2.2))
            await client.flush()
            server.vanish()
            with pytest.raises(ConnectionLostError, match="did not come back within 0.2 s"):
                await client.finish()
            events: list[Event] = []
            with pytest.raises(ConnectionLostError, match="connection refused"):
                await collect(client, events)
            assert [event.text for event in events if isinstance(event, Final)] == ["w0 w1 w2 w3"]
            for call in (client.flush, client.finish):
                with pytest.raises(ConnectionLostError):
                    await call()

    run(test())


@pytest.mark.parametrize("end_with", ["idle_timeout", "drain"])
def test_a_stream_that_the_server_ends(end_with: str) -> None:
    """Finals that come after the error are read before it is raised; the code says why."""

    async def test() -> None:
        async with (
            FakeServer(end_after_s=2.5, end_with=end_with).running() as server,
            StreamingClient(server.url, **QUICK) as client,
        ):
            await client.send(noise(3.0))
            events: list[Event] = []
            with pytest.raises(ServerError) as caught:
                await collect(client, events)
            assert caught.value.code == end_with
            assert [e.text for e in events if isinstance(e, Final)] == ["w0 w1 w2 w3", "w4"]
            with pytest.raises(ServerError):
                await client.send(noise(1.0))
            assert len(server.requests) == 1

    run(test())


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "token.*FORESOUND_TOKEN"), (503, "try again in 5 s"), (404, "/v1/stream"), (500, "HTTP 500")],
)
def test_refusals(status: int, message: str) -> None:
    """The HTTP status becomes the error's code; the text says what to do."""

    async def test() -> None:
        async with FakeServer(refuse=status).running() as server:
            with pytest.raises(ServerError, match=message) as caught:
                async with StreamingClient(server.url, token="secret"):
                    pass
            assert caught.value.code == f"http_{status}" and "secret" not in str(caught.value)

    run(test())


def test_a_full_server_is_asked_again_while_resuming() -> None:
    """A temporary refusal is no reason to give a stream up."""

    async def test() -> None:
        async with FakeServer().running() as server, StreamingClient(server.url, **QUICK) as client:
            server.refuse = 503
            server.cut()
            while len(server.requests) < 3:
                await asyncio.sleep(1 * MS)
            server.refuse = None
            await client.finish()

    run(test())


def test_a_setting_that_the_server_refuses() -> None:
    """The error names the field."""

    async def test() -> None:
        async with FakeServer().running() as server:
            with pytest.raises(ServerError, match="expected en") as caught:
                async with StreamingClient(server.url, language="xx"):
                    pass
            assert (caught.value.code, caught.value.field) == ("invalid_field", "language")

    run(test())


def test_the_token_goes_into_a_header() -> None:
    """It is not part of the address, which ends up in logs."""

    async def test() -> None:
        async with FakeServer(token="s3cret").running() as server:
            async with StreamingClient(server.url + "/?a=b", token=" s3cret\n", **QUICK) as client:
                server.cut()
                await client.finish()
            assert [request.path for request in server.requests] == [
                "/v1/stream?a=b",
                "/v1/stream?a=b&resume_token=token-0",
            ]

    run(test())


@pytest.mark.parametrize(
    "url", ["", "localhost:8765", "ftp://x", "ws://", "ws://x:y", "ws://[::1", "ws://x:0"]
)
def test_bad_addresses(url: str) -> None:
    """The message shows what an address looks like."""
    with pytest.raises(OptionError, match="ws://127.0.0.1:8765"):
        StreamingClient(url)
    with pytest.raises(OptionError, match="token"):
        StreamingClient("ws://x", token="ü")


def test_nobody_answers(tmp_path: Path) -> None:
    """Refused, unknown, mute and foreign servers are told apart, each in one sentence."""

    async def connect(url: str) -> str:
        with pytest.raises(UnreachableError) as caught:
            async with StreamingClient(url, connect_s=0.3):
                pass
        return str(caught.value)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def foreign(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n\r\n")
        writer.close()

    async def test() -> None:
        assert "(connection refused); start one with 'foresound serve'" in await connect("ws://127.0.0.1:9")
        assert "no server answers at ws://nowhere.invalid/v1/stream" in await connect("ws://nowhere.invalid")
        for handler, message in ((mute, "no answer within 0.3 s"), (foreign, "no websocket at")):
            async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                assert message in await connect(f"http://127.0.0.1:{port}")

    run(test())


@pytest.mark.parametrize(
    "frame", ["{", "[]", '{"type": "ready"}', '{"type": "final", "seq": "x"}', b"\xff", "1"]
)
def test_messages_that_are_not_the_protocols(frame: str | bytes) -> None:
    """Nonsense from the other side is a ServerError with the start of it, not a crash."""
    with pytest.raises(ServerError, match="protocol") as caught:
        parse(frame)
    assert caught.value.code == "bad_message"


def test_messages_of_later_versions_are_passed_over() -> None:
    """Unknown types and fields are no error."""
    assert parse('{"type": "weather"}') == (0, None)
    assert parse('{"type": "speech_ended", "seq": 7, "time": 0.5, "wind": 3}')[0] == 7


def test_events_survive_their_json_form() -> None:
    """Milliseconds in JSON and samples inside agree, so a second round changes nothing."""
    words = (Word("Ünï→世界", 1, 8001, 0.123456, True), Word("😀", 8001, 9999, 1.0, False))
    for event in (Partial(3, "Ünï", "→世界", words, 777), Final(3, "Ünï", words, 5, 16_003, True, 1 << 40)):
        fields = event_to_dict(event)
        _, again = parse(json.dumps(fields))
        assert isinstance(again, Partial | Final)
        assert event_to_dict(again) == fields


@pytest.mark.parametrize("how", ["cancel", "error", "leave", "leave at once"])
def test_leaving_early_closes_everything(how: str) -> None:
    """Cancelled, failed or just left: at once, nothing stays open, and others who wait are told."""

    async def test() -> None:
        async with FakeServer(acknowledge_bytes=None).running() as server:
            waiting: list[asyncio.Task[Any]] = []

            async def use() -> None:
                async with StreamingClient(server.url) as client:
                    if how == "leave at once":
                        return
                    waiting.append(asyncio.create_task(collect(client, [])))
                    await client.send(noise(1.0))
                    if how == "error":
                        raise ZeroDivisionError
                    if how == "cancel":
                        await client.send(noise(60.0))

            started = time.perf_counter()
            task = asyncio.create_task(use())
            await asyncio.wait({task}, timeout=100 * MS)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            expected = {"cancel": asyncio.CancelledError, "error": ZeroDivisionError}
            assert isinstance(outcome, expected.get(how, type(None)))
            await asyncio.gather(*waiting)
            assert time.perf_counter() - started < 1.0
            while server.connections:
                await asyncio.sleep(1 * MS)

    run(test())


def test_a_client_is_one_stream() -> None:
    """Outside its with statement, or a second time, it says so instead of hanging."""

    async def test() -> None:
        async with FakeServer().running() as server:
            client = StreamingClient(server.url)
            for call in (client.send(b"12"), client.flush()):
                with pytest.raises(StreamingError, match="async with"):
                    await call
            async with client:
                pass
            with pytest.raises(StreamingError, match="one stream"):
                async with client:
                    pass

    run(test())


def test_drafts_that_nobody_reads_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow reader loses drafts only, and out-of-date or repeated ones are dropped."""
    monkeypatch.setattr("clients.inbox._MAX_BACKLOG", 2)
    inbox = Inbox()

    def partial(text: str, segment: int = 0) -> str:
        rest = '"committed": "", "words": [], "time": 1'
        return f'{{"type": "partial", "segment": {segment}, "draft": "{text}", {rest}}}'

    def final(seq: int, segment: int = 0) -> str:
        rest = '"text": "x", "start": 0, "end": 1, "second_pass": false, "time": 1'
        return f'{{"type": "final", "seq": {seq}, "segment": {segment}, {rest}}}'

    for frame in (partial("a"), partial("b"), partial("c"), partial("c"), final(1), final(1), partial("c")):
        inbox.receive(frame)
    assert [getattr(event, "draft", "final") for event in inbox.events] == ["a", "c", "final"]
    inbox.receive(partial("d", 1))
    inbox.receive(final(2, 1))
    assert len(inbox.events) == 5


def test_outbox_sends_again_what_is_not_confirmed() -> None:
    """Confirmed audio is dropped, a half-received frame is cut, controls stay until they are answered."""
    outbox = Outbox(window_bytes=100)
    for frame in (b"abcd", b"efgh", "flush", b"ijkl"):
        outbox.add(frame)
    assert [outbox.take() for _ in range(5)] == [b"abcd", b"efgh", "flush", b"ijkl", None]
    outbox.confirm(4)
    outbox.rewind(6)
    assert [outbox.take() for _ in range(4)] == [b"gh", "flush", b"ijkl", None]
    outbox.rewind(8)
    outbox.answered("flush")
    outbox.answered("flush")
    assert [outbox.take() for _ in range(2)] == [b"ijkl", None]
    outbox.rewind(8)
    assert (outbox.take(), outbox.n_kept) == (b"ijkl", 4)
    with pytest.raises(ValueError, match="after it confirmed 8"):
        outbox.rewind(7)
    with pytest.raises(ValueError, match="13 bytes are confirmed, but 12 were sent"):
        outbox.confirm(13)
    outbox.add("flush")
    assert outbox.take() == "flush"
    outbox.add(b"m")
    assert outbox.take() == b"m"
    outbox.rewind(13)  # audio after the flush has arrived, so the flush has
    assert outbox.take() is None


def test_outbox_says_it_again_to_another_stream() -> None:
    """From any byte that is kept, with the controls that nobody has answered; counts begin at 0."""
    outbox = Outbox(window_bytes=100, past_bytes=8)
    for frame in (b"abcd", b"efgh", "flush", b"ijkl", b"mnop"):
        outbox.add(frame)
    while outbox.take():
        pass
    outbox.confirm(12)
    assert outbox.start_again(6) == 6
    assert [outbox.take() for _ in range(5)] == [b"gh", "flush", b"ijkl", b"mnop", None]
    assert (outbox.n_added, outbox.n_kept) == (10, 10)
    outbox.confirm(10)
    assert outbox.start_again(0) == 2  # no more than eight bytes that were confirmed are kept
    assert [outbox.take() for _ in range(4)] == ["flush", b"ijkl", b"mnop", None]
    outbox.answered("flush")
    outbox.confirm(8)
    outbox.forget(5)
    assert outbox.start_again(99) == 8
    assert outbox.take() is None and outbox.n_kept == 0


def test_tls(tmp_path: Path) -> None:
    """wss works with a context; an untrusted certificate is named as such."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-keyout", "key.pem", "-out", "cert.pem", "-days", "1", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async def test() -> None:
        async with FakeServer().running(ssl=served) as server:
            url = server.url.replace("ws:", "https:")
            trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
            async with StreamingClient(url, ssl_context=trusting) as client:
                await client.send(noise(1.0))
                assert (await client.finish()).audio_s == 1.0
            with pytest.raises(UnreachableError, match="not trusted"):
                async with StreamingClient(url):
                    pass

    run(test())


def test_clients_need_no_torch() -> None:
    """Neither the Python client nor the commands that use it load torch."""
    code = (
        "import sys, clients; clients.StreamingClient; "
        "import clients.cli, clients.remote, clients.microphone, asr.events, asr.audio, clients.formats; "
        "print(sorted({'torch', 'whisper', 'sounddevice'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The Python code of docs/clients.md works as it stands, at another address."""
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("tests/fixtures", str(ROOT / "tests" / "fixtures"))
    with serving(FakeServer()) as server:
        exec(compile(code.replace("ws://127.0.0.1:8765", server.url), "docs/clients.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == " w0 |  d1" and lines[-1] == "w20 w21"
    assert server.starts[0]["latency"] == "low"
