"""What /metrics tells: counters that the service keeps up, gauges that are read when someone asks."""

from __future__ import annotations

import re
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from service.admission import Tick
from service.messages import Command, Error, Message, Note, Reply

_TICK_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
_WORD_LATENCY_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one server, in a registry of its own so that several servers may share a process."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time, open files
        self.sessions_started = self._counter("sessions_started", "Sessions that got a stream.")
        self.sessions_ended = self._counter("sessions_ended", "Sessions that ended, by cause.", "cause")
        self.resumes = self._counter("resumes", "Sessions that went on over a new connection.")
        self.refused = self._counter("refused", "Handshakes refused, by reason.", "reason")
        self._received = self._counter("messages_received", "Frames from clients, by type.", "type")
        self._sent = self._counter("messages_sent", "Messages to clients, by type.", "type")
        self._errors = self._counter("errors", "Errors told to clients, by code.", "code")
        self.audio_s = self._counter(
            "audio_seconds", "Audio received; compressed audio when its session ends."
        )
        self.crashes = self._counter("crashes", "Sessions closed because of a fault of the server.")
        self.drains = self._counter("drains", "Times that the server began to shut down.")
        self._ticks = self._histogram("tick_seconds", "What a step of the model took.", _TICK_S)
        self._tick_audio_s = self._counter(
            "recognised_audio_seconds", "Audio that the model is through with."
        )
        self.word_latency_s = self._histogram(
            "word_latency_seconds",
            "From the arrival of a word's end to the word, committed, for the client.",
            _WORD_LATENCY_S,
        )

    def count_tick(self, tick: Tick) -> None:
        """Count a step of the model; from any thread.

        Args:
            tick: The newest.
        """
        self._ticks.observe(tick.took_s)
        self._tick_audio_s.inc(tick.audio_s)

    def count_received(self, command: Command | Reply) -> None:
        """Count what a client sent.

        Args:
            command: As its frame was understood; a reply counts when it is sent.
        """
        if not isinstance(command, Note | Reply):
            self._received.labels(_type(command)).inc()

    def count_sent(self, message: Message) -> None:
        """Count a message to a client, and its code if it is an error.

        Args:
            message: Any.
        """
        self._sent.labels(_type(message)).inc()
        if isinstance(message, Error):
            self._errors.labels(message.code).inc()
        elif isinstance(message, Reply) and message.error:
            self._errors.labels(message.error).inc()

    def watch(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Add a gauge.

        Args:
            name: Without the common prefix.
            meaning: A sentence.
            read: Gives its value.
        """
        Gauge(f"foresound_{name}", meaning, registry=self._registry).set_function(read)

    def page(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"foresound_{name}", meaning, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"foresound_{name}", meaning, labels, registry=self._registry)


def _type(thing: Command | Message) -> str:
    """Return the name of a message's class in the way of the wire: SpeechStarted is speech_started."""
    return re.sub(r"\B(?=[A-Z])", "_", type(thing).__name__).lower()
