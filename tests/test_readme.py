"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def snippet(name: str) -> str:
    """The README's Python snippet that uses a name."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (found,) = (each for each in snippets if name in each)
    return found


def test_python_snippet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet streams the shipped clip and prints its words."""
    monkeypatch.chdir(ROOT)
    exec(compile(snippet("Recognizer.load"), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Partial(") for line in lines)
    assert "what you can do for your country" in lines[-1]


def test_links_lead_somewhere() -> None:
    """Every relative link of the README and docs/ names a file."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
