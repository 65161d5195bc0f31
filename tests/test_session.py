"""The session's state machine from scripted commands and outputs: no sockets, no clock, no model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import AudioError, OptionError
from asr.events import Event, Final, Partial, SpeechEnded, SpeechStarted, Word
from service.codes import FATAL_ERRORS, RECOVERABLE_ERRORS
from service.config import Limits
from service.messages import (
    Ack,
    Audio,
    Close,
    Command,
    Done,
    Error,
    Flush,
    Message,
    Ping,
    Pong,
    Problem,
    Ready,
    Start,
    Stop,
)
from service.session import MAX_ERRORS, Feed, Finish, Open, Resume, Session, State
from service.stream_settings import AudioFormat, Failed, Finished, Flushed, Output

SECOND = bytes(32_000)


def new_session() -> Session:
    return Session(id="s", resume_token="t", model="fake", limits=Limits())


def streaming(start: Start | None = None) -> Session:
    """A session with an open stream, its ready taken."""
    session = new_session()
    assert isinstance(session.receive(start or Start(), now=0), Open)
    session.opened(now=0)
    assert isinstance(told(session)[0], Ready)
    return session


def told(session: Session) -> list[Message]:
    return [outgoing.message for outgoing in iter(session.outbox.take, None)]


def codes(session: Session) -> list[str]:
    return [message.code for message in told(session) if isinstance(message, Error)]


def word(text: str, start: int, end: int, *, stable: bool = True) -> Word:
    return Word(text, start, end, 0.9, stable)


def final(segment: int = 0, text: str = "one") -> Final:
    return Final(segment, text, (), 0, 100, False, 100)


def test_a_session_from_start_to_done() -> None:
    """The usual way: start, audio, flush, stop; the batcher's events come through in order."""
    session = streaming()
    assert session.receive(Audio(b"1234"), now=0.1) == Feed(b"1234")
    assert session.receive(Flush(), now=0.2) == Flush()
    events: list[Output] = [SpeechStarted(0), Partial(0, "one", "", (), 50), final(), Flushed(2)]
    for event in events:
        session.deliver(event)
    assert told(session) == [SpeechStarted(0), final(), Flushed(2)]
    assert session.receive(Stop(), now=0.3) == Finish()
    assert session.state is State.FINISHING
    session.deliver(Finished(2.0, 0.5))
    assert told(session) == [Done(2.0, 0.25, "stop"), Close(1000, "stop")]
    assert (session.state, session.outcome) == (State.ENDED, "stop")


def test_no_audio_at_all() -> None:
    """Stop right after start is done with no audio and no division by zero."""
    session = streaming()
    assert session.receive(Stop(), now=0) == Finish()
    session.deliver(Finished(0.0, 0.0))
    assert told(session) == [Done(0.0, 0.0, "stop"), Close(1000, "stop")]


@pytest.mark.parametrize("command", [Audio(b"12"), Flush(), Stop()])
def test_nothing_but_ping_works_before_start(command: Command) -> None:
    """The frame is dropped, and the session still waits."""
    session = new_session()
    assert session.receive(command, now=0) is None
    assert codes(session) == ["not_started"]
    assert session.receive(Ping(5), now=0) is None and told(session) == [Pong(5)]
    assert session.state is State.WAITING and session.n_bytes == 0


def test_recoverable_errors_leave_everything_as_it_was() -> None:
    """A second start, a frame that is no command, an odd frame; the stream goes on."""
    session = streaming(Start(audio=AudioFormat("pcm_s16le", 16_000, 2)))
    for command in (Start(), Problem("invalid_json", "no JSON"), Audio(b"12345")):
        assert session.receive(command, now=0) is None
    assert codes(session) == ["already_started", "invalid_json", "odd_length"]
    assert (session.state, session.n_bytes) == (State.STREAMING, 0)
    assert session.receive(Audio(b"1234"), now=0) == Feed(b"1234")


def test_after_stop_only_another_stop_is_no_error() -> None:
    """A client that resumes may not know whether its stop arrived."""
    session = streaming()
    session.receive(Stop(), now=0)
    for command in (Stop(), Audio(b"12"), Flush(), Start(), Ping(1), Audio(b"")):
        assert session.receive(command, now=0) is None
    assert [type(message).__name__ for message in told(session)] == ["Error", "Error", "Error", "Pong"]


def test_empty_frames_are_ignored_in_every_state() -> None:
    """No answer, no action, no error."""
    session = new_session()
    assert session.receive(Audio(b""), now=0) is None
    assert told(session) == []
    session = streaming()
    assert session.receive(Audio(b""), now=9) is None
    assert told(session) == []


def test_too_many_errors_end_the_session_in_order() -> None:
    """What was said becomes final before the error and the close."""
    session = streaming()
    for _ in range(MAX_ERRORS):
        assert session.receive(Problem("invalid_json", ""), now=0) is None
    assert codes(session) == ["invalid_json"] * MAX_ERRORS
    assert session.receive(Problem("invalid_json", ""), now=0) == Finish()
    session.deliver(final())
    session.deliver(Finished(1, 1))
    *_, said, error, close = told(session)
    assert (
        said == final()
        and isinstance(error, Error)
        and (error.code, error.fatal) == ("too_many_errors", True)
    )
    assert close == Close(4429, "too_many_errors")


@pytest.mark.parametrize("before_start", [True, False])
def test_too_many_errors_before_start_or_after_stop(before_start: bool) -> None:
    """Where no stream is open to be finished there is nothing to do."""
    session = new_session() if before_start else streaming()
    if not before_start:
        session.receive(Stop(), now=0)
    actions = [session.receive(Problem("invalid_json", ""), now=0) for _ in range(MAX_ERRORS + 1)]
    assert not any(actions)
    if not before_start:
        session.deliver(Finished(1, 1))
    assert told(session)[-1] == Close(4429, "too_many_errors")


@pytest.mark.parametrize(
    ("code", "reason", "close", "is_error"),
    [
        ("idle_timeout", "idle", 4408, True),
        ("session_limit", "session_limit", 4410, True),
        ("shutting_down", "drain", 1001, False),
    ],
)
def test_limits_end_a_session_in_order(code: str, reason: str, close: int, is_error: bool) -> None:
    """Finals, the error, done with the reason, close; a drain is no error."""
    session = streaming()
    assert session.expire(code, "text") == Finish()
    assert session.expire("session_limit", "a later one changes nothing") is None
    for _ in range(2 * MAX_ERRORS):
        assert session.receive(Audio(b"12"), now=0) is None  # sent before the client could know
    session.deliver(final())
    session.deliver(Finished(2, 1))
    error = [Error(code, "text", fatal=True)] if is_error else []
    assert told(session) == [final(), *error, Done(2, 0.5, reason), Close(close, code)]


def test_a_limit_before_start_closes_at_once() -> None:
    """There is nothing to finish."""
    session = new_session()
    assert session.expire("idle_timeout", "text") is None
    assert told(session) == [Error("idle_timeout", "text", fatal=True), Close(4408, "idle_timeout")]


def test_bad_audio_is_the_client_s_fault() -> None:
    """The finals came before; the error says what the batcher said."""
    session = streaming()
    session.deliver(final())
    session.deliver(Failed(AudioError("no FLAC")))
    said, error, close = told(session)
    assert isinstance(error, Error) and error.message == "no FLAC" and error.fatal
    assert (said, close) == (final(), Close(4400, "bad_audio"))


def test_a_broken_model_loses_nothing_committed() -> None:
    """Committed text of segments without a final becomes their final, in order and disjoint."""
    session = streaming()
    session.deliver(Final(0, "zero", (), 0, 100, False, 100))
    session.deliver(
        Partial(1, "one", " dra", (word("one", 100, 180), word("dra", 190, 200, stable=False)), 210)
    )
    session.deliver(Partial(2, "", " dra", (word("dra", 300, 400, stable=False),), 400))
    session.deliver(Partial(3, "three", "", (word("three", 400, 500),), 520))
    told(session)
    session.deliver(Failed(RuntimeError("boom")))
    session.deliver(final(4))
    one, three, error, close = told(session)
    assert one == Final(1, "one", (word("one", 100, 180),), 100, 180, False, 210)
    assert three == Final(3, "three", (word("three", 400, 500),), 180, 500, False, 520)
    assert isinstance(error, Error) and error.code == "model_error" and "boom" not in error.message
    assert close == Close(4500, "model_error")


def test_without_interim_no_partial_is_told() -> None:
    """But it still counts when the model breaks."""
    session = streaming(Start(interim=False))
    session.deliver(Partial(0, "one", "", (word("one", 0, 80),), 100))
    assert told(session) == []
    session.deliver(Failed(RuntimeError()))
    assert isinstance(told(session)[0], Final)


def test_a_refused_start_may_be_tried_again() -> None:
    """The error names the option that the model refuses."""
    session = new_session()
    session.receive(Start(), now=0)
    session.refused(OptionError("language must be one of en, not 'xx'"))
    (error,) = told(session)
    assert isinstance(error, Error) and (error.code, error.field) == ("invalid_field", "language")
    assert isinstance(session.receive(Start(), now=0), Open)


def test_acks_come_once_a_second_of_audio_or_of_time() -> None:
    """Counted in the client's rate and encoding; samples of compressed audio are not counted."""
    session = streaming()
    for n in range(10):
        session.receive(Audio(bytes(8000)), now=n * 0.01)
    assert told(session) == [Ack(32_000, 64_000)]  # the second of two, the first was unsent
    session.receive(Audio(bytes(2)), now=5.0)
    assert told(session) == [Ack(40_001, 80_002)]
    session = streaming(Start(audio=AudioFormat("flac")))
    session.receive(Audio(bytes(99)), now=0.5)
    session.receive(Audio(bytes(1)), now=1.5)
    assert told(session) == [Ack(0, 100)]


def test_a_thousand_flushes_are_counted_until_they_are_answered() -> None:
    """Each is passed on and answered; the caller sees how many wait."""
    session = streaming()
    for n in range(1000):
        assert session.receive(Flush(), now=n) == Flush()
    assert session.n_waiting == 1000
    for _ in range(1000):
        session.deliver(Flushed(0))
    assert session.n_waiting == 1000
    assert told(session) == [Flushed(0)] * 1000
    assert session.n_waiting == 0


def test_a_start_with_a_token_resumes() -> None:
    """The caller looks the session up; this one still waits."""
    session = new_session()
    assert session.receive(Start(resume_token="x", last_seq=3), now=0) == Resume("x", 3)
    assert session.state is State.WAITING


def test_resuming_tells_what_arrived_and_sends_what_was_missed() -> None:
    """Ready first, then every later number, then the newest partial; errors are counted anew."""
    session = streaming()
    session.receive(Audio(SECOND), now=1)
    for output in (SpeechStarted(0), final(0), final(1), Partial(2, "two", "", (), 9)):
        session.deliver(output)
    told(session)
    for _ in range(MAX_ERRORS):
        session.receive(Problem("invalid_json", ""), now=1)
    assert session.resume(last_seq=2, now=2) is None
    ready, *rest = told(session)
    assert isinstance(ready, Ready) and ready.resumed
    assert (ready.n_samples, ready.n_bytes) == (16_000, 32_000)
    assert rest == [final(1), Partial(2, "two", "", (), 9)]
    assert session.receive(Problem("invalid_json", ""), now=3) is None


def test_resuming_from_a_number_that_does_not_exist_changes_nothing() -> None:
    """The error says from where the session can go on."""
    session = streaming()
    session.deliver(final())
    problem = session.resume(last_seq=2, now=0)
    assert problem and (problem.code, problem.field) == ("invalid_field", "last_seq")
    assert problem.message.endswith("goes on from 0 to 1")
    assert told(session) == [final()]


def test_an_ended_session_can_still_be_resumed_for_its_farewell() -> None:
    """A client that lost its connection before done gets it on the next one."""
    session = streaming()
    session.receive(Stop(), now=0)
    session.deliver(final())
    session.deliver(Finished(1, 1))
    told(session)
    session.resume(last_seq=0, now=0)
    assert told(session)[1:] == [final(), Done(1, 1, "stop"), Close(1000, "stop")]


def test_an_abandoned_session_is_silent() -> None:
    """Nobody is there to be told."""
    session = streaming()
    session.abandon()
    session.deliver(final())
    session.fail("model_error", "")
    assert session.receive(Stop(), now=0) is None
    assert (told(session), session.state, session.outcome) == ([], State.ENDED, "lost")


class Simulation:
    """A session with a stream that behaves as the batcher does, and a client that may lose its connection."""

    def __init__(self) -> None:
        self.session = new_session()
        self.segment, self.committed, self.clock = 0, "", 0
        self.is_open = False
        self.requests: list[Any] = []
        self.finals: list[Final] = []
        self.received: list[tuple[int, Message]] = []
        self.now = 0.0

    def act(self, action: Any) -> None:
        match action:
            case Open():
                self.session.opened(now=self.now)
                self.is_open = True
            case Feed() | Flush() | Finish():
                assert self.is_open, "nothing may reach a stream that is not open"
                self.requests.append(action)
                self.is_open = not isinstance(action, Finish)

    def work(self) -> None:
        """The stream answers its oldest request."""
        for output in self.outputs(self.requests.pop(0)) if self.requests else []:
            self.session.deliver(output)

    def outputs(self, request: Any) -> list[Output]:
        if isinstance(request, Feed):
            self.clock += 10
            self.committed += "a"
            partial = Partial(
                self.segment, self.committed, "?", (word("a", self.clock - 10, self.clock),), self.clock
            )
            return [partial, *(self.close_segment() if len(self.committed) == 3 else [])]
        last = Flushed(self.clock) if isinstance(request, Flush) else Finished(1.0, 0.5)
        return [*self.close_segment(), last]

    def close_segment(self) -> list[Event]:
        if not self.committed:
            return []
        start = self.finals[-1].end if self.finals else 0
        made = Final(self.segment, self.committed, (), start, self.clock, False, self.clock)
        self.finals.append(made)
        self.segment, self.committed = self.segment + 1, ""
        return [SpeechEnded(self.clock), made]

    def read(self, n: int) -> None:
        for _ in range(n):
            if outgoing := self.session.outbox.take():
                self.received.append((outgoing.seq, outgoing.message))

    def reconnect(self, lost: int) -> None:
        """The connection breaks and the last messages do not arrive; the client comes back."""
        if self.session.state is State.WAITING:
            return
        self.received = self.received[: max(0, len(self.received) - lost)]
        last_seq = max((seq for seq, _ in self.received), default=0)
        assert self.session.resume(last_seq=last_seq, now=self.now) is None


commands = st.sampled_from(
    [Start(), Start(interim=False), Audio(b"12"), Audio(b"123"), Audio(b""), Flush(), Ping(1)]
    + [Problem("invalid_json", "")]
)
causes = [("expire", code) for code in ("idle_timeout", "session_limit", "shutting_down")]
steps = st.lists(
    st.one_of(
        commands,
        commands,
        st.sampled_from(["work", "work", "read", "read", "stop"]),
        st.tuples(st.just("cut"), st.integers(0, 4)),
        st.sampled_from([*causes, ("fail", "model_error")]),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(st.booleans(), steps)
def test_any_sequence_keeps_the_promises(starts: bool, script: list[Any]) -> None:
    """Legal or not, with cut connections and limits: no exception, no lost final, numbers without gaps."""
    simulation = Simulation()
    session = simulation.session
    if starts:
        simulation.act(session.receive(Start(), now=0))
    for step in script:
        simulation.now += 0.3
        match step:
            case "work":
                simulation.work()
            case "read":
                simulation.read(3)
            case "stop":
                simulation.act(session.receive(Stop(), now=simulation.now))
            case ("cut", lost):
                simulation.reconnect(lost)
            case ("expire", code):
                simulation.act(session.expire(code, "text"))
            case ("fail", code):
                session.fail(code, "text")
                simulation.requests.clear()
                simulation.is_open = False
            case command:
                simulation.act(session.receive(command, now=simulation.now))
    simulation.act(session.receive(Stop(), now=simulation.now))
    while simulation.requests:
        simulation.work()
    simulation.read(10_000)
    check_promises(simulation)


def check_promises(simulation: Simulation) -> None:
    received, session = simulation.received, simulation.session
    numbers = [seq for seq, _ in received if seq]
    assert numbers == list(range(1, len(numbers) + 1))
    finals = [message for _, message in received if isinstance(message, Final)]
    assert finals[: len(simulation.finals)] == simulation.finals
    assert all(
        one.end <= two.start and one.segment < two.segment
        for one, two in zip(finals, finals[1:], strict=False)
    )
    committed: dict[int, str] = {}
    for _, message in received:
        if isinstance(message, Partial):
            assert message.committed.startswith(committed.get(message.segment, ""))
            committed[message.segment] = message.committed
        if isinstance(message, Final):
            assert message.text.startswith(committed.get(message.segment, ""))
        if isinstance(message, Error):
            assert message.code in (FATAL_ERRORS if message.fatal else RECOVERABLE_ERRORS)
    if session.state is State.ENDED:
        assert isinstance(received[-1][1], Close)
        assert sum(isinstance(message, Close) for _, message in received) >= 1
