"""What training runs share: rates, logs, and settings from files and command lines."""

import csv
from pathlib import Path

import pytest

from training.config import DataConfig, HeadLossConfig, HeadTrainConfig
from training.run_log import log_row
from training.runs import Position, every_nth, load_batches, parse_settings, warm_cosine


def test_the_rate_warms_up_and_falls() -> None:
    """A straight line to 1, then a cosine to one percent."""
    rates = [warm_cosine(step, warmup_steps=4, steps=104) for step in range(104)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[54] == pytest.approx(0.505, abs=0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert warm_cosine(104, warmup_steps=4, steps=104) == pytest.approx(0.01)


def test_a_log_has_one_header(tmp_path: Path) -> None:
    """Rows of resumed runs go below those that are there."""
    for step in (1, 2):
        log_row(tmp_path / "log.csv", {"step": step, "loss": 0.5})
    with (tmp_path / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_part_is_spread_evenly() -> None:
    """At most so many of all, from the first to the end."""
    assert every_nth(list(range(10)), 4) == [0, 3, 6, 9]  # type: ignore[arg-type]
    assert every_nth(list(range(3)), 4) == [0, 1, 2]  # type: ignore[arg-type]


class _Epochs:
    """Epochs of as many batches as their number, plus two."""

    def plan(self, epoch: int) -> list[list[str]]:
        return [[f"{epoch}.{batch}"] for batch in range(epoch + 2)]


@pytest.mark.parametrize(
    ("drawn_epochs", "expected"),
    [(0, "1.1 1.2 2.0 2.1 2.2 2.3 3.0"), (2, "1.1 1.2 0.0 0.1 1.0 1.1 1.2")],
)
def test_drawn_epochs_come_again(drawn_epochs: int, expected: str) -> None:
    """What is loaded repeats; the place in the run goes on."""
    batches = load_batches(
        _Epochs(),  # type: ignore[arg-type]
        Position(1, 1),
        lambda items, position: (*items, f"{position.epoch}.{position.batch}"),
        drawn_epochs=drawn_epochs,
    )
    loaded = [next(batches) for _ in range(7)]
    assert [batch.content for batch in loaded] == [(name, name) for name in expected.split()]
    assert [batch.following.epoch for batch in loaded[:3]] == [1, 2, 2]


def _parse(arguments: str) -> dict[str, object]:
    owners = (DataConfig, HeadLossConfig, HeadTrainConfig)
    given = parse_settings(owners, description="", required=("manifest",), arguments=arguments.split())
    return {name: value for values in given.values() for name, value in values.items()}


def test_every_type_of_setting_is_read() -> None:
    """Numbers, tuples, paths and truth values."""
    given = _parse("--manifest m --fixed-look 2,0,1 --late-s 0.5 --whisper-embeddings false --width 64")
    assert given == {
        "manifest": Path("m"),
        "fixed_look": (2, 0, 1),
        "late_s": 0.5,
        "whisper_embeddings": False,
        "width": 64,
    }


@pytest.mark.parametrize("arguments", ["--width 64", "--manifest m --wdith 64"])
def test_missing_and_misspelt_settings_are_refused(arguments: str) -> None:
    """As any command line does it."""
    with pytest.raises(SystemExit):
        _parse(arguments)


def test_a_truth_value_must_be_one() -> None:
    """The message names the setting."""
    with pytest.raises(ValueError, match="whisper_embeddings must be true or false"):
        _parse("--manifest m --whisper-embeddings perhaps")
