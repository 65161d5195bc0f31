"""Hypothesis and the corpus on every target; atheris, where it is installed, runs them for longer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.routes import ROUTES, VOSK
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, join_frames, split_frames, talk

CORPUS = Path(__file__).with_name("corpus")
N_EXAMPLES = int(os.environ.get("FORESOUND_FUZZ_EXAMPLES", "60"))
SEEDS = seeds()
FUZZ = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    derandomize="FORESOUND_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


def found() -> list[Any]:
    """The files of the corpus, each of which once broke something."""
    files = sorted(file for file in CORPUS.rglob("*") if file.is_file() and file.suffix != ".md")
    return [pytest.param(file, id=str(file.relative_to(CORPUS))) for file in files]


@pytest.mark.parametrize("file", found())
def test_what_was_found_stays_found(file: Path) -> None:
    """Every file of the corpus, on its target."""
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    """What fuzzing begins with is right, or at least handled."""
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_almost_right(name: str) -> None:
    """Seeds with changes: no exception but the documented ones, no thread left behind, no endless loop."""

    @FUZZ
    @given(st.one_of(mutated(SEEDS[name]), mutated(SEEDS[name]), st.binary(max_size=400)))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def messages(*samples: str) -> st.SearchStrategy[str]:
    """Real messages, some with a value of one field replaced by anything."""

    @st.composite
    def strategy(draw: st.DrawFn) -> str:
        message = json.loads(draw(st.sampled_from(samples)))
        place = message
        while isinstance(place, dict) and place and draw(st.booleans()):
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or draw(st.booleans()):
                place[key] = draw(json_values)
                break
            place = place[key]
        return json.dumps(message)

    return strategy()


@pytest.mark.parametrize("name", ["native", "openai", "deepgram", "vosk"])
def test_any_conversation(name: str) -> None:
    """Right messages in any order, with any value in any field, and audio between them."""
    frames = [each for seed in SEEDS[name] for each in split_frames(seed)]
    texts = [each for each in frames if isinstance(each, str) and each.startswith("{")]
    path = {"native": "/v1/stream", "openai": "/v1/realtime", "deepgram": "/v1/listen"}.get(name)
    route = ROUTES[path] if path else VOSK
    query = {"encoding": ["linear16"], "sample_rate": ["16000"]} if name == "deepgram" else {}
    script = st.lists(messages(*texts) | st.binary(max_size=64) | st.text(max_size=20), max_size=20)

    @FUZZ
    @given(script)
    def run(frames: list[str | bytes]) -> None:
        talk(route, query, frames)

    run()


@given(st.lists(st.text(max_size=50) | st.binary(max_size=50), max_size=10))
@settings(deadline=None, max_examples=50)
def test_frames_survive_the_corpus_format(frames: list[str | bytes]) -> None:
    """What a target reads of a file is what was written."""
    assert split_frames(join_frames(frames)) == frames
