"""What holds in every conversation of OpenAI's Realtime protocol, whatever a client does."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr.events import Final, Partial
from service.protocol.openai_realtime import (
    SUPPORTED_EVENTS,
)
from tests.openai_talk import CLEAR, COMMIT, MANUAL, Talk

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
FIELDS = (
    *("type", "audio", "input", "format", "transcription", "turn_detection", "input_audio_format", "include"),
    *("language", "languages", "prompt", "keywords", "delay", "input_audio_transcription", "threshold"),
)
ANSWERS = {
    "error",
    "session.created",
    "session.updated",
    "transcription_session.updated",
    "input_audio_buffer.cleared",
}
nested = st.recursive(
    json_values | st.sampled_from(["transcription", "server_vad", "audio/pcm", "en", "low"]),
    lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([*SUPPORTED_EVENTS, "other"]), nested)
def test_no_event_raises(kind: str, value: Any) -> None:
    """Whatever a client sends there is an answer, and every answer is an event with a name of its own."""
    talk = Talk()
    talk.send(json.dumps({"type": kind, "session": value, "audio": value, "event_id": value}))
    talk.send(json.dumps(value))
    events = talk.messages()
    assert len({each["event_id"] for each in events}) == len(events)
    assert {each["type"] for each in events} <= ANSWERS


actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["speak", "speak", "speak", "rest", "commit", "clear", "manual", "vad", "hold", "go"]
        ),
        st.integers(1, 9),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(actions)
def test_deltas_add_up_and_each_word_is_final_once(script: list[tuple[str, int]]) -> None:
    """However a client speaks, commits, clears and changes its mind, and however slowly it is served."""
    talk = Talk()
    for action, amount in script:
        match action:
            case "speak":
                talk.speak(amount / 8)
            case "rest":
                talk.rest(amount / 8)
            case "commit":
                talk.event(COMMIT)
            case "clear":
                talk.event(CLEAR)
            case "manual":
                talk.update(MANUAL)
            case "vad":
                talk.update({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
            case _:
                talk.is_held = action == "hold"
                talk.pump()
    talk.is_held = False
    talk.pump()
    talk.session.expire("shutting_down", "")
    if talk.slot and talk.session.state.value == "finishing":
        talk.slot.finish()
    talk.pump()
    check_invariants(talk.messages())


def check_invariants(events: list[dict[str, Any]]) -> None:
    """What holds in every conversation."""
    told: dict[str, str] = {}
    words: dict[str, list[float]] = {}
    committed: list[str] = []
    completed: list[str] = []
    speaking: str | None = None
    all_words: list[float] = []
    for event in events:
        item_id = event.get("item_id", "")
        match event["type"].rpartition(".")[2]:
            case "delta":
                assert event["delta"] and item_id not in completed
                told[item_id] = told.get(item_id, "") + event["delta"]
                stable = [word["start"] for word in event["words"] if word["stable"]]
                words.setdefault(item_id, []).extend(stable)
                all_words += stable
            case "committed":
                assert item_id not in committed
                assert event["previous_item_id"] == (committed[-1] if committed else None)
                committed.append(item_id)
            case "completed":
                assert item_id in committed and item_id not in completed
                completed.append(item_id)
                assert event["transcript"] == told.get(item_id, "")
                assert [word["start"] for word in event["words"]] == words.get(item_id, [])
                assert " ".join(word["word"] for word in event["words"]) == event["transcript"]
            case "speech_started":
                assert speaking is None
                speaking = item_id
            case "speech_stopped":
                speaking = None
    assert completed == committed
    assert all_words == sorted(set(all_words)), "a word was finalised twice or out of order"


@st.composite
def histories(draw: st.DrawFn) -> list[Partial | Final]:
    """Segments whose committed text grows by any pieces, with drafts that come and go."""
    pieces = st.text(alphabet="ab é,.\u3042", min_size=1, max_size=4)
    events: list[Partial | Final] = []
    for segment in range(draw(st.integers(1, 3))):
        text = ""
        for piece in draw(st.lists(pieces, max_size=5)):
            text = (text + piece).lstrip()
            events.append(Partial(segment, text, draw(pieces), (), 0))
        text += draw(pieces)
        events.append(Final(segment, text.strip(), (), 0, 0, False, 0))
    return events


@settings(deadline=None)
@given(histories(), st.booleans(), st.randoms(use_true_random=False))
def test_deltas_add_up_to_the_recognised_text(
    events: list[Partial | Final], manual: bool, random: Any
) -> None:
    """For any text, with blanks anywhere and partials left out, nothing is lost and nothing is taken back."""
    talk = Talk()
    if manual:
        talk.update(MANUAL)
    talk.speak(0.01)
    for event in events:
        if isinstance(event, Final) or random.random() < 0.7:
            talk.deliver(event)
    talk.event(COMMIT)
    messages = talk.messages()
    deltas = "".join(each.get("delta", "") for each in messages)
    transcripts = [each["transcript"] for each in messages if "transcript" in each]
    texts = [event.text for event in events if isinstance(event, Final)]
    if manual:
        assert transcripts == [deltas] == [" ".join(texts).strip() if any(texts) else ""]
    else:
        assert deltas == "".join(transcripts) and transcripts[: len(texts)] == texts
