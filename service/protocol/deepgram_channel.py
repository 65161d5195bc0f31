"""What a Deepgram client is told of one channel.

Segments of the stream are final results. An interim result holds everything since the last final one, so that
the finals' stretches of audio follow one another and those of interim results begin where a final one will.
"""

from __future__ import annotations

from collections.abc import Sequence

from asr.events import Event, Final, Partial, SpeechEnded, SpeechStarted
from service.protocol.deepgram_messages import Scribe, Speech
from service.protocol.deepgram_pauses import Pauses
from service.protocol.deepgram_query import ListenOptions
from service.protocol.dialect import Frame
from service.stream_settings import Progress


class Channel:
    """One channel's results and pauses."""

    def __init__(self, options: ListenOptions, scribe: Scribe) -> None:
        """Begin in silence.

        Args:
            options: What the address asks for.
            scribe: Writes this channel's messages.
        """
        self._scribe = scribe
        self._tells_speech = options.vad_events
        self._pauses = Pauses(
            silence_ms=options.start.settings.silence_ms,
            endpointing_ms=options.endpointing_ms,
            utterance_end_ms=options.utterance_end_ms,
        )
        self._covered = 0  # samples up to which results are final
        self._n_finalizing = 0  # Finalize messages without an answer
        self._held: tuple[Speech, bool] | None = None  # a final result that may turn out to be an answer

    def finalize(self) -> None:
        """Expect that everything so far becomes final: the client has sent Finalize."""
        self._n_finalizing += 1

    def finalized(self) -> Sequence[Frame]:
        """Answer a Finalize: everything before it is final."""
        self._n_finalizing -= 1
        return self.release(from_finalize=True) or [
            self._scribe.results(self._nothing, is_final=True, from_finalize=True)
        ]

    def release(self, *, from_finalize: bool = False) -> Sequence[Frame]:
        """Tell the final result that was held back, if one was.

        Args:
            from_finalize: It is a Finalize's answer.
        """
        if self._held is None:
            return []
        (speech, is_endpoint), self._held = self._held, None
        return [
            self._scribe.results(speech, is_final=True, speech_final=is_endpoint, from_finalize=from_finalize)
        ]

    def tell(self, event: Event | Progress) -> Sequence[Frame]:
        """Tell what was heard.

        Args:
            event: The stream's next one.
        """
        released = self.release()
        match event:
            case Partial() as partial:
                return [*released, *self._interim(partial)]
            case Final() as final:
                return [*released, *self._final(final)]
            case SpeechStarted(time):
                self._pauses.speech_started()
                told = [self._scribe.speech_started(time)] if self._tells_speech else []
                return [*released, *told]
            case SpeechEnded(time):
                self._pauses.speech_ended(time)
                return released
            case Progress(time):
                return [*released, *self._pause(time)]

    def _interim(self, partial: Partial) -> Sequence[Frame]:
        self._pauses.words_shown(partial.words)
        speech = Speech(partial.text, partial.words, self._covered, max(partial.time, self._covered))
        return [self._scribe.results(speech, is_final=False)]

    def _final(self, final: Final) -> Sequence[Frame]:
        is_endpoint, ended_before = self._pauses.segment_closed(final)
        speech = Speech(final.text, final.words, self._covered, max(final.end, self._covered))
        self._covered = speech.end
        before = [] if ended_before is None else [self._scribe.utterance_end(ended_before)]
        if self._n_finalizing:
            # Whether Finalize made it final is known once the next message is: Flushed or anything else.
            self._held = speech, is_endpoint
            return before
        return [*before, self._scribe.results(speech, is_final=True, speech_final=is_endpoint)]

    def _pause(self, time: int) -> Sequence[Frame]:
        is_endpoint, last_word_end = self._pauses.heard(time)
        frames = []
        if is_endpoint:
            frames.append(self._scribe.results(self._nothing, is_final=True, speech_final=True))
        if last_word_end is not None:
            frames.append(self._scribe.utterance_end(last_word_end))
        return frames

    @property
    def _nothing(self) -> Speech:
        return Speech("", (), self._covered, self._covered)
