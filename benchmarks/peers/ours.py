"""foresound as one of the systems that are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from system import Given


class Foresound:
    """foresound itself: one stream, or many that go through the model together."""

    decoder = "whisper"
    n_streams = 1

    def __init__(self, given: Given) -> None:
        """Load the adapter over the original weights."""
        from asr import Recognizer
        from asr.adapters import shipped_adapter
        from benchmarks.machine import fastest_weights

        self.step_s = given.step_s or 0.3
        self._chunk_ms = round(1000 * self.step_s)
        head = given.head if self.decoder == "transducer" else "none"
        weights = fastest_weights()
        self._recognizer = Recognizer.load(given.model, adapter=given.adapter, head=head, weights=weights)
        self._latency = given.latency
        self._slots: list[Any] = []
        self._pool = self._recognizer.slots(self.n_streams)
        shipped = "shipped adapter" if shipped_adapter(given.model) else "no adapter"
        adapter = {"auto": shipped, "none": "no adapter"}.get(given.adapter, "adapter")
        self.hears = adapter != "no adapter"  # else its words are no measure of anything
        latency = f" at latency {given.latency}" if given.latency else ""
        self.settings = (
            f"{self.decoder} decoder{latency}, {adapter}, {self._recognizer.weights} weights, "
            f"{self.n_streams} together"
        )

    def begin(self) -> None:
        """Open the streams."""
        for slot in self._slots:
            self._pool.give_back(slot)
        self._slots = [self._pool.take() for _ in range(self.n_streams)]
        self._streams = [
            self._recognizer.stream(
                decoder=self.decoder, latency=self._latency, chunk_ms=self._chunk_ms, slot=slot
            )
            for slot in self._slots
        ]
        self._finals, self._committed, self._draft = "", "", ""

    def hear(self, samples: np.ndarray) -> tuple[str, str]:
        """Advance all streams by the same samples."""
        return self._advance(samples, "listen")

    def finish(self) -> str:
        """Finish all streams."""
        return self._advance(np.zeros(0, dtype=np.float32), "finish")[0]

    def _advance(self, samples: np.ndarray, then: Any) -> tuple[str, str]:
        from asr import Final, Partial
        from asr.batch import Step

        outcome, *_ = self._recognizer.advance([Step(stream, samples, then) for stream in self._streams])
        if isinstance(outcome, Exception):
            raise outcome
        for event in outcome:  # the others hear the same
            if isinstance(event, Final):
                self._finals += f" {event.text}"
                self._committed = self._draft = ""
            elif isinstance(event, Partial):
                self._committed, self._draft = f" {event.committed}", event.draft
        return self._finals + self._committed, self._draft


class Foresound8(Foresound):
    """Eight streams in one batch."""

    n_streams = 8


class Foresound16(Foresound):
    """Sixteen streams in one batch."""

    n_streams = 16


class ForesoundTransducer(Foresound):
    """One stream with the transducer."""

    decoder = "transducer"


class ForesoundTransducer16(ForesoundTransducer):
    """Sixteen such streams in one batch."""

    n_streams = 16
