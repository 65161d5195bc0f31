from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from asr.endpoint import STEP_SAMPLES, EndpointRules, SpeechChange, SpeechTracker
from asr.errors import OptionError
from asr.events import SAMPLE_RATE
from asr.vad import WINDOW_SAMPLES, SileroVad, VadJob, VadState


class ScriptedVad(SileroVad):
    """Finds speech wherever the samples are not zero."""

    def __init__(self) -> None:
        """Need no weights."""

    def step(self, samples: Tensor, state: VadState) -> tuple[Tensor, VadState]:
        """One window is speech when its first sample is."""
        return (samples[:, ::WINDOW_SAMPLES] != 0).float(), state


def hear(tracker: SpeechTracker, samples: Tensor) -> list[SpeechChange]:
    """What a tracker notices in its next samples."""
    job = tracker.hear(samples)
    return [] if job is None else list(tracker.judge(ScriptedVad().step_jobs([job])[0]))


def windows(*pattern: tuple[int, float]) -> Tensor:
    """Samples ``[1, S]`` of (number of steps, level) stretches."""
    return torch.cat([torch.full((1, n * STEP_SAMPLES), level) for n, level in pattern], dim=-1)


def test_vad_equals_the_package(jfk: np.ndarray) -> None:
    """The plain function gives the packaged model's probabilities, however the signal is split."""
    n_threads = torch.get_num_threads()
    from silero_vad import load_silero_vad  # sets torch's threads

    torch.set_num_threads(n_threads)
    packaged = load_silero_vad()
    signal = torch.from_numpy(jfk[: 100 * WINDOW_SAMPLES])[None]
    with torch.inference_mode():
        expected = torch.cat([packaged(window, 16000) for window in signal.split(WINDOW_SAMPLES, -1)], dim=1)
        ours = SileroVad()
        whole, _ = ours.step(signal, ours.init_state())
        first, state = ours.step(signal[:, : 30 * WINDOW_SAMPLES], ours.init_state())
        rest, _ = ours.step(signal[:, 30 * WINDOW_SAMPLES :], state)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, atol=1e-4, rtol=0)


def test_vad_rows_are_independent(jfk: np.ndarray) -> None:
    """A batch of two streams gives each what it gets alone."""
    vad = SileroVad()
    a = torch.from_numpy(jfk[: 40 * WINDOW_SAMPLES])[None]
    b = torch.from_numpy(jfk[20000 : 20000 + 40 * WINDOW_SAMPLES].copy())[None]
    both, _ = vad.step(torch.cat([a, b]), vad.init_state(2))
    alone, _ = vad.step(b, vad.init_state())
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)


def test_vad_jobs_of_any_lengths(jfk: np.ndarray) -> None:
    """Jobs taken together give each stream what its windows give one after the other."""
    vad = SileroVad()
    signals = [
        torch.from_numpy(jfk[start : start + n * WINDOW_SAMPLES].copy())[None]
        for start, n in ((0, 12), (20000, 9), (40000, 12))
    ]
    states = [vad.init_state() for _ in signals]
    jobs = [VadJob(signal, state) for signal, state in zip(signals, states, strict=True)]
    for job, result in zip(jobs, vad.step_jobs(jobs), strict=True):
        expected, state = vad.step(job.samples, job.state)
        torch.testing.assert_close(result.probabilities, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.state.hidden, state.hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.state.context, state.context)


def test_speech_starts_and_ends() -> None:
    """Times are those of the speech; an end is told once the silence has lasted."""
    tracker = SpeechTracker(ScriptedVad(), EndpointRules(silence_ms=500))
    signal = windows((3, 0.0), (5, 0.1), (20, 0.0))
    changes = hear(tracker, signal)
    assert [(change.is_start, change.time) for change in changes] == [
        (True, 3 * STEP_SAMPLES),
        (False, 8 * STEP_SAMPLES),
    ]
    assert changes[1].noticed - changes[1].time >= SAMPLE_RATE // 2
    assert not tracker.speaking


def test_short_silence_does_not_end_speech() -> None:
    """A pause shorter than the rules want belongs to the speech."""
    tracker = SpeechTracker(ScriptedVad(), EndpointRules(silence_ms=500))
    changes = hear(tracker, windows((1, 0.1), (4, 0.0), (1, 0.1), (4, 0.0)))
    assert [(change.is_start, change.time) for change in changes] == [(True, 0)]
    assert tracker.speaking and tracker.ended == 6 * STEP_SAMPLES


@pytest.mark.parametrize("size", [1, 160, 1000, 5000])
def test_blocks_do_not_matter(size: int) -> None:
    """The same changes come out for blocks of any size."""
    signal = windows((2, 0.0), (4, 0.1), (12, 0.0), (2, 0.1))
    whole = hear(SpeechTracker(ScriptedVad(), EndpointRules()), signal)
    tracker = SpeechTracker(ScriptedVad(), EndpointRules())
    assert [change for block in signal.split(size, -1) for change in hear(tracker, block)] == whole


@pytest.mark.parametrize("wrong", [{"silence_ms": 10}, {"max_segment_s": 31}, {"max_segment_s": 1}])
def test_rules_refuse_values(wrong: dict[str, float]) -> None:
    """Values outside their range are refused by name."""
    with pytest.raises(OptionError, match=next(iter(wrong))):
        EndpointRules(**wrong)  # type: ignore[arg-type]
