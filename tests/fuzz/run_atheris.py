"""``python -m tests.fuzz.run_atheris TARGET [libFuzzer's options]``: fuzzing led by coverage.

Needs atheris (``pip install atheris``; wheels for Linux). Crashes are written as files: put them into
``tests/fuzz/corpus/TARGET`` once they are mended.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service", "clients", "asr"]):
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz one target until it is stopped."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"expected one of {', '.join(TARGETS)}")
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()[name]):
            (Path(folder) / f"seed-{number}").write_bytes(seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], folder], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
