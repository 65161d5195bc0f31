"""What /metrics tells: counters that the service keeps up, gauges that are read when someone asks."""

from __future__ import annotations

import re
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from service.messages import Command, Error, Message, Note, Reply


class Metrics:
    """The metrics of one server, in a registry of its own so that several servers may share a process."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = CollectorRegistry()
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

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"foresound_{name}", meaning, labels, registry=self._registry)


def _type(thing: Command | Message) -> str:
    """Return the name of a message's class in the way of the wire: SpeechStarted is speech_started."""
    return re.sub(r"\B(?=[A-Z])", "_", type(thing).__name__).lower()
