"""docs/compatibility.md: every row of every table names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def rows(text: str) -> list[str]:
    """The rows of its tables without their heads."""
    tables = re.findall(r"^\|[^\n]*\| test \|\n\|[-|]+\|\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    return [line for table in tables for line in table.splitlines()]


@pytest.mark.parametrize(
    ("section", "n_rows"), [("OpenAI Realtime", 45), ("OpenAI REST", 15), ("Deepgram", 40), ("Vosk", 15)]
)
def test_every_protocol_has_its_tables(section: str, n_rows: int) -> None:
    """What clients send, what they get, what is not there; and no row has been lost."""
    assert len(rows(SECTIONS[section])) >= n_rows
    assert "### Not there" in SECTIONS[section]


@pytest.mark.parametrize("row", rows(PAGE), ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_row_is_backed_by_a_test(row: str) -> None:
    """The last cell is a test that exists."""
    named = re.search(r"\| `(test_\w+\.py)::(test_\w+)` \|$", row)
    assert named, "the last cell names no test"
    source = (ROOT / "tests" / named[1]).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {named[2]}\(", source, re.MULTILINE)
