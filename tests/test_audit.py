"""The audit of dependencies, with a pip-audit that says what we want; CI runs it with the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
OURS = {"name": "foresound", "skip_reason": "distribution marked as editable"}
BAD = {"name": "av", "version": "14.0", "vulns": [{"id": "X-1", "fix_versions": ["14.1"]}]}
HOPELESS = {"name": "old", "version": "1", "vulns": [{"id": "X-2", "fix_versions": []}]}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a script as a program")


def audit(folder: Path, script: str | None) -> subprocess.CompletedProcess[str]:
    """Run it where ``pip-audit`` is this Python script, or is not there."""
    if script is not None:
        program = folder / "pip-audit"
        program.write_text(f"#!{sys.executable}\n{script}\n")
        program.chmod(0o755)
    command = [sys.executable, str(ROOT / ".ci" / "audit.py")]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": str(folder)})


@pytest.mark.parametrize(
    ("dependencies", "code", "lines"),
    [
        ([CLEAN, OURS], 0, ["audit: 2 packages, 0 advisories"]),
        (
            [CLEAN, BAD, HOPELESS],
            1,
            [
                "audit: av 14.0: X-1, mended in 14.1",
                "audit: old 1: X-2, mended in no version yet",
                "audit: 3 packages, 2 advisories",
            ],
        ),
    ],
)
def test_what_pip_audit_finds(
    tmp_path: Path, dependencies: list[object], code: int, lines: list[str]
) -> None:
    """A line for each advisory; pip-audit's own exit code is 1 then."""
    answer = json.dumps({"dependencies": dependencies, "fixes": []})
    result = audit(tmp_path, f"print({answer!r}); raise SystemExit({code})")
    assert (result.returncode, result.stdout.splitlines()) == (code, lines)


def test_advisories_out_of_reach(tmp_path: Path) -> None:
    """Its exit code is 1 as well: this is told apart, with the reason and what to do."""
    result = audit(tmp_path, "raise ConnectionError('no such host')")
    assert result.returncode == 3
    assert "cannot be read from here: ConnectionError: no such host" in result.stdout
    assert "before a release" in result.stdout and "Traceback" not in result.stdout


def test_without_pip_audit(tmp_path: Path) -> None:
    """Said so."""
    result = audit(tmp_path, None)
    assert result.returncode == 3 and "pip install pip-audit" in result.stdout


def test_ci_audits() -> None:
    """Whatever comes of it, the tests run after it."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert any(line.startswith("python .ci/audit.py ||") for line in lines)
