"""One session over several streams, one after another: times and segment numbers go on."""

from __future__ import annotations

from dataclasses import replace

from asr.events import SAMPLE_RATE, Final, Partial, SpeechEnded, SpeechStarted, Word
from service.stream_settings import Finished, Flushed, Output, Progress


class Splice:
    """Puts the outputs of a stream behind those of the streams before it."""

    def __init__(self) -> None:
        """Start with the first stream."""
        self._n_samples = 0  # 16 kHz samples that the streams before have heard
        self._n_segments = 0  # of the streams before
        self._next_segment = 0
        self._busy_s = 0.0

    @property
    def audio_s(self) -> float:
        """Audio of the streams before."""
        return self._n_samples / SAMPLE_RATE

    def next_stream(self, finished: Finished) -> None:
        """Go on with another stream.

        Args:
            finished: The present one's last output.
        """
        self._n_samples += round(finished.audio_s * SAMPLE_RATE)
        self._n_segments = self._next_segment
        self._busy_s += finished.busy_s

    def place(self, output: Output) -> Output:
        """Return a stream's output with times and numbers of the session.

        Args:
            output: As the stream gave it.
        """
        if isinstance(output, Partial | Final):
            self._next_segment = self._n_segments + output.segment + 1
        if not self._n_samples:
            return output
        return self._moved(output)

    def _moved(self, output: Output) -> Output:
        by = self._n_samples
        match output:
            case Partial():
                segment = self._n_segments + output.segment
                return replace(
                    output, segment=segment, words=self._words(output.words), time=output.time + by
                )
            case Final():
                return replace(
                    output,
                    segment=self._n_segments + output.segment,
                    words=self._words(output.words),
                    start=output.start + by,
                    end=output.end + by,
                    time=output.time + by,
                )
            case SpeechStarted() | SpeechEnded():
                return replace(output, time=output.time + by)
            case Flushed():
                return Flushed(output.samples + by)
            case Progress():
                return replace(output, time=output.time + by)
            case Finished():
                return Finished(output.audio_s + self.audio_s, output.busy_s + self._busy_s)
        return output

    def _words(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        by = self._n_samples
        return tuple(replace(word, start=word.start + by, end=word.end + by) for word in words)
