"""When Deepgram's clients are told that a speaker has paused: two measures of silence, in 16 kHz samples.

``speech_final`` comes from the voice activity detector and belongs to a segment's final result. UtteranceEnd
comes from gaps between words. Both count audio, not time: without audio nobody pauses.
"""

from __future__ import annotations

from collections.abc import Sequence

from asr.events import SAMPLE_RATE, Final, Word


class Pauses:
    """Follows one stream's speech and words."""

    def __init__(self, *, silence_ms: int, endpointing_ms: int | None, utterance_end_ms: int | None) -> None:
        """Begin in silence.

        Args:
            silence_ms: Silence after which the stream says that speech has ended.
            endpointing_ms: Silence after which the client wants to know; None for never.
            utterance_end_ms: Gap after a final word, likewise.
        """
        self._endpointing = _samples(endpointing_ms)
        self._utterance_end = _samples(utterance_end_ms)
        self._is_endpoint_late = endpointing_ms is not None and endpointing_ms > silence_ms
        self._is_speaking = False
        self._ended_at: int | None = None  # speech, and its segment is not final
        self._endpoint_at: int | None = None  # where the silence after a final segment will be long enough
        self._last_word_end: int | None = None  # of the final words that no UtteranceEnd has followed
        self._has_open_words = False

    def speech_started(self) -> None:
        """Somebody speaks."""
        self._is_speaking = True
        self._endpoint_at = None

    def speech_ended(self, time: int) -> None:
        """Nobody speaks.

        Args:
            time: Since when.
        """
        self._is_speaking = False
        self._ended_at = time

    def words_shown(self, words: Sequence[Word]) -> None:
        """Words after the last final one are known, and may change.

        Args:
            words: All of them.
        """
        self._has_open_words = bool(words)

    def segment_closed(self, final: Final) -> tuple[bool, int | None]:
        """A segment is final.

        Args:
            final: The segment.

        Returns:
            Whether that is because of a pause that is long enough for the client, and the end of the last
            final word before if an UtteranceEnd belongs before this segment.
        """
        ended_before = self._end_before(final.words)
        # Speech that ended before the first word had none, and its end is not this segment's.
        is_paused = self._ended_at is not None and (not final.words or self._ended_at > final.words[0].start)
        is_endpoint = is_paused and self._endpointing is not None
        if is_endpoint and self._is_endpoint_late and not self._is_speaking:
            assert self._ended_at is not None and self._endpointing is not None
            self._endpoint_at = self._ended_at + self._endpointing
        self._ended_at = None
        self._has_open_words = False
        if final.words:
            self._last_word_end = final.words[-1].end
        return is_endpoint and not self._is_endpoint_late, ended_before

    def heard(self, time: int) -> tuple[bool, int | None]:
        """All audio so far is recognised.

        Args:
            time: Its length.

        Returns:
            Whether the pause after the last segment has just become long enough for the client, and the end
            of the last final word if it is time for an UtteranceEnd.
        """
        is_endpoint = self._endpoint_at is not None and time >= self._endpoint_at
        if is_endpoint:
            self._endpoint_at = None
        last = self._last_word_end
        if last is None or self._utterance_end is None or self._has_open_words or self._is_speaking:
            return is_endpoint, None
        if time < last + self._utterance_end:
            return is_endpoint, None
        self._last_word_end = None
        return is_endpoint, last

    def _end_before(self, words: Sequence[Word]) -> int | None:
        last = self._last_word_end
        if last is None or self._utterance_end is None or not words:
            return None
        if words[0].start < last + self._utterance_end:
            return None
        self._last_word_end = None
        return last


def _samples(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds * SAMPLE_RATE // 1000
