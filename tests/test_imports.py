"""Who may import whom: the sources are read, and one process proves that the clients start without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "asr": {"asr"},
    "service": {"asr", "service"},
    "training": {"asr", "training"},
    "clients": {"asr", "clients"},
}
TORCH_OUTSIDE_ASR_AND_TRAINING = {"service/batcher.py"}
# Where the command line reaches another package, which it imports when it is called: file, function.
REACHES = {"training": ("clients/train.py", "run_"), "service": ("clients/serve.py", "serve")}


@dataclass(frozen=True)
class Import:
    """One imported name: its full dotted name, its line, and the functions around it."""

    name: str
    line: int
    functions: tuple[str, ...]

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def imports(tree: ast.AST, path: str, functions: tuple[str, ...] = ()) -> Iterator[Import]:
    """Yields every import below a node of the file at `path` (seen from the root), relative ones resolved."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, functions) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = path.split("/")[: -node.level] if node.level else []
            parts += [node.module] if node.module else []
            yield from (Import(".".join([*parts, x.name]), node.lineno, functions) for x in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, path, (*functions, node.name))
        else:
            yield from imports(node, path, functions)


def violations(path: str, source: str) -> list[str]:
    """Returns one line per import in the file that crosses a boundary."""
    own = path.split("/")[0]
    found = []
    for each in imports(ast.parse(source), path):
        place = f"{path}:{each.line}"
        if each.top in ALLOWED and each.top not in ALLOWED[own]:
            file, function = REACHES.get(each.top, ("", ""))
            if path != file or not any(function in name for name in each.functions):
                found.append(f"{place} imports {each.name}, but {own} may import {sorted(ALLOWED[own])} only")
        if (
            each.top in ALLOWED
            and each.top != own
            and any(part.startswith("_") for part in each.name.split("."))
        ):
            found.append(f"{place} imports {each.name}, which is private to {each.top}")
        needs_torch = own in {"asr", "training"} or path in TORCH_OUTSIDE_ASR_AND_TRAINING
        if each.top in {"torch", "torchaudio"} and not needs_torch:
            found.append(f"{place} imports {each.name}: only asr, service/batcher.py and training may")
    return found


def sources() -> list[Path]:
    return [file for package in ALLOWED for file in sorted((ROOT / package).rglob("*.py"))]


def test_no_source_crosses_a_boundary() -> None:
    """Every import of every package is allowed by the design."""
    assert {file.relative_to(ROOT).parts[0] for file in sources()} == set(ALLOWED)
    found = [
        line
        for file in sources()
        for line in violations(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("asr/a.py", "import service"),
        ("asr/a.py", "from training.loop import train"),
        ("asr/models/a.py", "from ... import clients"),
        ("service/a.py", "from training import loop"),
        ("service/protocol/a.py", "import torch"),
        ("service/a.py", "from asr.encoder import _step"),
        ("training/a.py", "if True:\n    import clients.cli"),
        ("clients/a.py", "import service.session"),
        ("clients/train.py", "import training.evaluate"),
        ("clients/train.py", "def register():\n    import training.evaluate"),
        ("clients/file.py", "def run_evaluate():\n    import training.evaluate"),
        ("clients/train.py", "def run_evaluate():\n    import service.main"),
        ("clients/serve.py", "from service.main import run"),
        ("clients/file.py", "def transcribe():\n    import torch.nn"),
    ],
)
def test_a_crossing_is_found(path: str, source: str) -> None:
    """Each kind of forbidden import is reported once, with its file and line."""
    (line,) = violations(path, source)
    assert line.startswith(f"{path}:{len(source.splitlines())} imports ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("asr/a.py", "import torch\nfrom . import events\nfrom asr.encoder import _step"),
        ("service/batcher.py", "import torch\nimport asr\nfrom service.session import Session"),
        ("training/a.py", "import torch\nfrom asr.checkpoint import load_checkpoint"),
        ("clients/train.py", "import asr.errors\ndef run_evaluate():\n    from training import evaluate"),
        ("clients/serve.py", "def serve():\n    from service.main import run"),
    ],
)
def test_what_the_design_allows_is_not_reported(path: str, source: str) -> None:
    """Allowed imports pass."""
    assert violations(path, source) == []


def test_the_command_line_starts_without_torch() -> None:
    """`import clients.cli` loads neither torch nor what needs it, so that the command starts at once."""
    code = (
        "import sys, clients.cli; print(sorted({'torch', 'torchaudio', 'whisper', 'peft'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
