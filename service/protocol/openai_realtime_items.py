"""The items of an OpenAI Realtime conversation: which words belong to which, and what is told of them.

Without turn detection an item is what lies between two commits, however many segments the recogniser makes of
it. With turn detection every segment is an item, and a commit ends the one that is open.

Text that has been told as a delta is never taken back: only what the recogniser has committed is told, and an
item's transcript is what its deltas add up to.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asr.events import SAMPLE_RATE, Final, Partial, Word

Event = dict[str, Any]
_TRANSCRIPTION = "conversation.item.input_audio_transcription"
_CLOSING = SAMPLE_RATE // 5  # audio after speech that its last decoding must have heard
_LEAST_CONFIDENCE = 1e-9


@dataclass
class Item:
    """One item.

    Attributes:
        id: Its name.
        begun: Sample at which its speech was heard to begin, if it was.
        ended: Sample at which its speech ended, as soon as it has.
        finals: Texts of its finished segments.
        told: What its deltas add up to.
        words: The words of its finished segments.
        n_words_told: Words of the running segment that have been told.
        seconds: Of its audio, where a commit ended it.
    """

    id: str
    begun: int | None = None
    ended: int | None = None
    finals: list[str] = field(default_factory=list)
    told: str = ""
    words: list[Word] = field(default_factory=list)
    n_words_told: int = 0
    seconds: float | None = None

    def read(self, text: str, words: Sequence[Word], *, logprobs: bool) -> list[Event]:
        """Tell what is new of the running segment.

        Args:
            text: Its committed text.
            words: Its words; those that are not stable may still change.
            logprobs: Tell log probabilities.
        """
        whole = " ".join([*self.finals, text]).rstrip() if text else self.told
        delta = whole[len(self.told) :] if whole.startswith(self.told) else ""
        if not delta:
            return []
        self.told = whole
        stable = [word for word in words if word.stable]
        new = stable[self.n_words_told :]
        self.n_words_told = len(stable)
        drafts = [word for word in words if not word.stable]
        body: Event = {"delta": delta, "words": [word_body(word) for word in (*new, *drafts)]}
        if logprobs:
            body["logprobs"] = [_logprob(word) for word in new]
        return [self._event("delta", body)]

    def close_segment(self, final: Final, *, logprobs: bool) -> list[Event]:
        """Tell the rest of a segment.

        Args:
            final: The segment.
            logprobs: Tell log probabilities.
        """
        events = self.read(final.text, final.words, logprobs=logprobs)
        if final.text:
            self.finals.append(final.text)
        self.words += final.words
        self.n_words_told = 0
        return events

    def completed(self, *, logprobs: bool) -> Event:
        """The item's transcript.

        Args:
            logprobs: Tell log probabilities.
        """
        body: Event = {
            "transcript": self.told,
            "usage": {"type": "duration", "seconds": round(self._seconds, 3)},
            "words": [word_body(word) for word in self.words],
        }
        if logprobs:
            body["logprobs"] = [_logprob(word) for word in self.words]
        return self._event("completed", body)

    def failed(self, message: str) -> Event:
        """Say that there will be no transcript.

        Args:
            message: Why.
        """
        error = {"type": "server_error", "code": "transcription_failed", "message": message, "param": None}
        return self._event("failed", {"error": error})

    @property
    def _seconds(self) -> float:
        if self.seconds is not None:
            return self.seconds
        starts = [each for each in (self.begun, *(word.start for word in self.words[:1])) if each is not None]
        ends = [each for each in (self.ended, *(word.end for word in self.words[-1:])) if each is not None]
        return max(0, max(ends) - min(starts)) / SAMPLE_RATE if starts and ends else 0.0

    def _event(self, kind: str, body: Event) -> Event:
        return {"type": f"{_TRANSCRIPTION}.{kind}", "item_id": self.id, "content_index": 0, **body}


@dataclass(frozen=True)
class _Mark:
    """A flush that the client caused: by a commit of an item, a commit of whatever is open, or a clear."""

    is_clear: bool = True
    item: Item | None = None
    n_items: int = 0  # that turn detection had made when it came


class Conversation:
    """All items of a connection; what client and recogniser do comes in the order in which it is told.

    Attributes:
        is_beta: Tell new items in the beta dialect's way.
        logprobs: Tell log probabilities.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        """Start with turn detection.

        Args:
            new_id: Gives the names of items.
        """
        self.is_beta = False
        self.logprobs = False
        self._new_id = new_id
        self._last_id: str | None = None
        self._marks: deque[_Mark] = deque()
        self._is_manual = False
        self._silence = 0  # samples that end a turn
        self._uncommitted = Item(new_id())  # without turn detection
        self._open: deque[Item] = deque()  # with turn detection: usually one at most
        self._voice: str | None = None  # the item with which the running speech was announced
        self._n_items = 0  # that turn detection has made

    def detect_turns(self, *, silence_ms: int | None) -> list[Event]:
        """Go on with or without turn detection; the stream that runs now has just started.

        Args:
            silence_ms: That ends a turn; None for no turn detection.
        """
        was_manual, self._is_manual = self._is_manual, silence_ms is None
        self._silence = (silence_ms or 0) * SAMPLE_RATE // 1000
        if self._is_manual:
            return self._close_all()
        if was_manual and self._uncommitted.told:  # turn detection goes on with what was not committed
            self._open.append(self._uncommitted)
        if was_manual:
            self._uncommitted = Item(self._new_id())
        return []

    def commit(self, seconds: float) -> list[Event]:
        """End the item; a flush follows.

        Args:
            seconds: Of audio since the last commit.
        """
        if not self._is_manual:
            self._marks.append(_Mark(is_clear=False, n_items=self._n_items))
            return []
        item, self._uncommitted = self._uncommitted, Item(self._new_id())
        item.seconds = seconds
        self._marks.append(_Mark(is_clear=False, item=item))
        return self._committed(item)

    def clear(self) -> list[Event]:
        """Forget what was said since the last commit; a flush follows."""
        self._marks.append(_Mark())
        self._uncommitted = Item(self._new_id())
        return [{"type": "input_audio_buffer.cleared"}]

    def speech_started(self, time: int) -> list[Event]:
        """Speech began.

        Args:
            time: In samples.
        """
        if self._is_manual:
            return []
        if not self._open or self._open[-1].ended is not None:
            self._open.append(Item(self._new_id()))
        item = self._open[-1]
        item.begun = time if item.begun is None else item.begun
        self._voice = item.id
        body = {"audio_start_ms": time * 1000 // SAMPLE_RATE, "item_id": item.id}
        return [{"type": "input_audio_buffer.speech_started", **body}]

    def speech_ended(self, time: int) -> list[Event]:
        """Speech ended.

        Args:
            time: In samples.
        """
        item_id, self._voice = self._voice, None
        if self._open and self._open[-1].ended is None:
            self._open[-1].ended = time
            item_id = self._open[-1].id
        if self._is_manual or item_id is None:
            return []
        body = {"audio_end_ms": time * 1000 // SAMPLE_RATE, "item_id": item_id}
        return [{"type": "input_audio_buffer.speech_stopped", **body}]

    def partial(self, partial: Partial) -> list[Event]:
        """More of a segment is known.

        Args:
            partial: The segment so far.
        """
        if self._is_dropping or not partial.committed:
            return []
        events, item = self._owner(partial.words)
        return events + item.read(partial.committed, partial.words, logprobs=self.logprobs)

    def final(self, final: Final) -> list[Event]:
        """A segment is finished.

        Args:
            final: The segment.
        """
        if self._is_dropping:
            return []
        events, item = self._owner(final.words)
        if self._is_manual:
            return events + item.close_segment(final, logprobs=self.logprobs)
        self._open.popleft()
        return events + self._complete(item, final)

    def flushed(self) -> list[Event]:
        """What the client has asked for is done: the oldest commit or clear."""
        mark = self._marks.popleft() if self._marks else _Mark()
        if mark.is_clear:
            self._open.clear()
            return []
        if mark.item:
            return [mark.item.completed(logprobs=self.logprobs)]
        if self._open:
            return self._close_all()
        # Silence was committed, unless its words have become an item just now.
        return [] if self._n_items > mark.n_items else self._complete(Item(self._new_id(), seconds=0.0))

    def heard(self, time: int) -> list[Event]:
        """Everything up to a time has been recognised: speech without a word gives an empty item.

        Args:
            time: In samples.
        """
        events: list[Event] = []
        while self._open and not self._is_dropping:
            item = self._open[0]
            if item.ended is None or item.told or time < item.ended + self._silence + _CLOSING:
                break
            self._open.popleft()
            events += self._complete(item)
        return events

    def over(self) -> list[Event]:
        """The session ends: what was said and not committed becomes an item after all."""
        rest = [self._uncommitted] if self._is_manual else self._open
        self._open = deque(item for item in rest if item.told)
        return self._close_all()

    def fail(self, message: str) -> list[Event]:
        """The session breaks: committed items will have no transcript.

        Args:
            message: Why.
        """
        items = [mark.item for mark in self._marks if mark.item]
        self._marks.clear()
        return [item.failed(message) for item in items]

    @property
    def _is_dropping(self) -> bool:
        return bool(self._marks) and self._marks[0].is_clear

    def _owner(self, words: Sequence[Word]) -> tuple[list[Event], Item]:
        """The item of a segment, and what is to be told of those before it that got none."""
        if self._is_manual:
            marked = self._marks[0].item if self._marks else None
            return [], marked or self._uncommitted
        events: list[Event] = []
        while len(self._open) > 1 and words and not self._open[0].told:
            ended, begun = self._open[0].ended, self._open[1].begun
            if ended is None or begun is None or words[0].start < (ended + begun) // 2:
                break
            events += self._complete(self._open.popleft())
        if not self._open:  # the speaker goes on after a segment that was long enough, or flushed
            self._open.append(Item(self._new_id()))
        return events, self._open[0]

    def _close_all(self) -> list[Event]:
        items, self._open = self._open, deque()
        return [event for item in items for event in self._complete(item)]

    def _complete(self, item: Item, final: Final | None = None) -> list[Event]:
        self._n_items += 1
        rest = item.close_segment(final, logprobs=self.logprobs) if final else []
        return [*self._committed(item), *rest, item.completed(logprobs=self.logprobs)]

    def _committed(self, item: Item) -> list[Event]:
        before, self._last_id = self._last_id, item.id
        body = {
            "id": item.id,
            "type": "message",
            "object": "realtime.item",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        kinds = ["created"] if self.is_beta else ["added", "done"]
        return [
            {"type": "input_audio_buffer.committed", "item_id": item.id, "previous_item_id": before},
            *(
                {"type": f"conversation.item.{kind}", "previous_item_id": before, "item": body}
                for kind in kinds
            ),
        ]


def word_body(word: Word) -> Event:
    """A word as the client is told.

    Args:
        word: The word.
    """
    return {
        "word": word.text,
        "start": round(word.start_s, 3),
        "end": round(word.end_s, 3),
        "confidence": round(word.confidence, 4),
        "stable": word.stable,
    }


def _logprob(word: Word) -> Event:
    """The mean log probability of a word's tokens."""
    logprob = round(math.log(max(word.confidence, _LEAST_CONFIDENCE)), 4)
    return {"token": word.text, "logprob": logprob, "bytes": list(word.text.encode())}
