"""The outbox: order, coalescing, numbers, and starting again for a client that resumes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from asr.events import Final, Partial, SpeechStarted
from service.messages import Ack, Close, Done, Error, Message, Pong
from service.outbox import Outbox, Outgoing


def partial(segment: int, text: str = "a") -> Partial:
    return Partial(segment, text, "", (), 0)


def final(segment: int) -> Final:
    return Final(segment, f"text {segment}", (), 0, 0, False, 0)


def take_all(outbox: Outbox) -> list[Outgoing]:
    return list(iter(outbox.take, None))


def messages(outbox: Outbox) -> list[Message]:
    return [outgoing.message for outgoing in take_all(outbox)]


def test_messages_leave_in_order_and_durable_ones_are_numbered() -> None:
    """First in, first out; only what is never dropped has a number."""
    outbox = Outbox()
    for message in (SpeechStarted(0), Pong(1), partial(0), final(1)):
        outbox.put(message)
    assert [(each.message, each.seq) for each in take_all(outbox)] == [
        (SpeechStarted(0), 1),
        (Pong(1), 0),
        (final(1), 2),
    ]
    assert outbox.take() is None and len(outbox) == 0


def test_only_the_newest_unsent_partial_and_ack_are_kept() -> None:
    """Older ones would be out of date when they arrive."""
    outbox = Outbox()
    for n in range(5):
        outbox.put(partial(0, "a" * n))
        outbox.put(Ack(n, n))
    assert messages(outbox) == [partial(0, "aaaa"), Ack(4, 4)]


def test_a_final_drops_its_segment_s_partial_but_not_the_next_one_s() -> None:
    """A second pass may bring the final of a segment after partials of the next."""
    outbox = Outbox()
    outbox.put(partial(3))
    outbox.put(final(3))
    outbox.put(partial(4))
    outbox.put(final(3))
    assert messages(outbox) == [final(3), partial(4), final(3)]


def test_a_restart_sends_what_the_client_lacks_then_the_newest_partial() -> None:
    """Control messages of the lost connection are gone, the farewell is not."""
    outbox = Outbox()
    for message in (final(0), final(1), partial(2)):
        outbox.put(message)
    take_all(outbox)
    outbox.put(Pong(1))
    outbox.put(final(2))
    outbox.put(partial(3))
    outbox.restart(Ack(7, 7), last_seq=1)
    assert messages(outbox) == [Ack(7, 7), final(1), final(2), partial(3)]
    outbox.end(Error("idle_timeout", "", fatal=True), Done(1, 1, "idle"), Close(4408))
    farewell = messages(outbox)
    outbox.restart(Ack(8, 8), last_seq=3)
    assert messages(outbox) == [Ack(8, 8), *farewell]
    outbox.restart(Ack(9, 9), last_seq=4)
    assert messages(outbox) == [Ack(9, 9), farewell[0], farewell[2]]


def test_it_knows_how_far_back_it_can_start() -> None:
    """Of what was sent only the newest is kept; of what was not sent everything."""
    outbox = Outbox(n_kept=2)
    assert (outbox.oldest_seq, outbox.last_seq) == (1, 0)
    for n in range(5):
        outbox.put(final(n))
    assert outbox.oldest_seq == 1
    for _ in range(4):
        outbox.take()
    assert (outbox.oldest_seq, outbox.last_seq) == (3, 5)
    outbox.restart(Pong(0), last_seq=2)
    assert messages(outbox) == [Pong(0), final(2), final(3), final(4)]


def test_delivered_means_that_nothing_but_the_close_is_left() -> None:
    """A session whose client has everything need not be kept for it."""
    outbox = Outbox()
    assert not outbox.is_delivered
    outbox.end(Done(1, 1, "stop"), Close(1000))
    assert not outbox.is_delivered
    outbox.take()
    assert outbox.is_delivered
    outbox.take()
    assert outbox.is_delivered


operations = st.lists(st.sampled_from(["partial", "final", "ack", "take", "cut"]), min_size=1, max_size=60)


@settings(deadline=None)
@given(operations)
def test_nothing_durable_is_lost_under_any_interleaving(steps: list[str]) -> None:
    """However puts, sends and cut connections mix, the client ends up with 1, 2, 3... and every final."""
    outbox = Outbox()
    received: list[Outgoing] = []
    on_the_way: list[Outgoing] = []
    segment = 0
    for step in steps:
        match step:
            case "partial":
                outbox.put(partial(segment))
            case "final":
                outbox.put(final(segment))
                segment += 1
            case "ack":
                outbox.put(Ack(0, 0))
            case "take":
                on_the_way += [outgoing] if (outgoing := outbox.take()) else []
            case "cut":  # half of what was on its way arrives
                received += on_the_way[: len(on_the_way) // 2]
                on_the_way.clear()
                seqs = [outgoing.seq for outgoing in received if outgoing.seq]
                outbox.restart(Pong(0), last_seq=max(seqs, default=0))
        assert sum(isinstance(each.message, Partial) for each in outbox._unsent) <= 1
    received += on_the_way + take_all(outbox)
    durable = [outgoing for outgoing in received if outgoing.seq]
    assert [outgoing.seq for outgoing in durable] == list(range(1, segment + 1))
    assert [outgoing.message for outgoing in durable] == [final(n) for n in range(segment)]
