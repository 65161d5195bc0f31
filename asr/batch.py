"""Many streams at once: one call advances them all, and what they ask of the model is computed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from asr.engine import Engine, Task
from asr.errors import AudioError, OptionError
from asr.events import Event
from asr.stream import NO_SAMPLES, Outcome, Stream, Then


@dataclass(frozen=True)
class Step:
    """What one stream is to do next.

    Attributes:
        stream: The stream.
        samples: To be heard, as in :meth:`asr.stream.Stream.feed`.
        then: Done after them, as the methods of a stream do it.
    """

    stream: Stream
    samples: np.ndarray = field(default_factory=lambda: NO_SAMPLES)
    then: Then = "listen"


def advance(engine: Engine, steps: Sequence[Step]) -> list[list[Outcome] | Exception]:
    """Advance many streams.

    Args:
        engine: The streams' recogniser.
        steps: Each stream at most once.

    Returns:
        For each stream its events, exactly as if it were alone, with second passes still to be run; or the
        error that befell it alone: an AudioError or OptionError leaves it as it was, any other ends it.

    Raises:
        OptionError: A stream is given twice.
    """
    _check_distinct([step.stream for step in steps])
    outcomes: dict[int, list[Outcome] | Exception] = {}
    tasks: dict[int, Task[list[Outcome]]] = {}
    for index, step in enumerate(steps):
        try:
            samples = step.stream.check(step.samples)
        except (AudioError, OptionError) as error:
            outcomes[index] = error
        else:
            tasks[index] = step.stream.advance(samples, step.then)
    outcomes.update(zip(tasks, engine.run(list(tasks.values())), strict=True))
    return [outcomes[index] for index in range(len(steps))]


def step_batch(engine: Engine, pairs: Sequence[tuple[Stream, np.ndarray]]) -> list[list[Event]]:
    """Feed many streams.

    Args:
        engine: The streams' recogniser.
        pairs: Streams, each at most once, and their next samples as in :meth:`asr.stream.Stream.feed`.

    Returns:
        Each stream's events, exactly as if it were alone.

    Raises:
        AudioError: Samples of one stream are unusable; no stream has heard anything.
        OptionError: A stream is finished or given twice.
    """
    _check_distinct([stream for stream, _ in pairs])
    checked = [(stream, stream.check(samples)) for stream, samples in pairs]
    results = []
    tasks = [stream.advance(samples, "listen") for stream, samples in checked]
    for (stream, _), outcome in zip(pairs, engine.run(tasks), strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        results.append(stream.resolve(outcome))
    return results


def _check_distinct(streams: Sequence[Stream]) -> None:
    if len(set(map(id, streams))) < len(streams):
        raise OptionError("a stream is given twice in one batch; join its samples")
