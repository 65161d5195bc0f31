"""A model folder is read for what it holds, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr.bundle import FILE, Bundle, base_of, read_bundle
from asr.errors import AdapterError


def test_paths_start_at_the_folder(tmp_path: Path) -> None:
    """A name stays a name; parts and a relative base are found wherever the folder lies."""
    (tmp_path / "adapter").mkdir()
    Bundle("tiny.en", adapter="adapter").write(tmp_path)
    assert read_bundle(tmp_path) == Bundle("tiny.en", adapter=str(tmp_path / "adapter"))
    assert base_of(tmp_path) == "tiny.en"
    Bundle("./base.pt").write(tmp_path)
    assert base_of(tmp_path) == str(tmp_path / "base.pt")


def test_other_models_are_none_of_its_business(tmp_path: Path) -> None:
    """Names and other folders."""
    assert read_bundle("tiny.en") is None
    assert read_bundle(tmp_path) is None
    assert base_of("tiny.en") == "tiny.en"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a description"),
        ('{"base_model": "tiny.en", "colour": 1}', "not a description"),
        ('{"base_model": "tiny.en", "format": 9}', "update foresound"),
        ('{"base_model": "tiny.en", "head": "head"}', "copy it whole"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, content: str, message: str) -> None:
    """With what to do."""
    (tmp_path / FILE).write_text(content)
    with pytest.raises(AdapterError, match=message):
        read_bundle(tmp_path)
