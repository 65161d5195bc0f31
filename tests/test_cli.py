"""The ``foresound`` command: subcommands, help, errors that no subcommand has handled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import clients.train
import clients.transcribe
from asr.errors import CheckpointError
from clients.cli import main

ROOT = Path(__file__).parents[1]


def test_no_command_and_help(capsys: Any) -> None:
    """A missing command is an error; help tells the exit codes."""
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("foresound: error: ")
    commands = (["transcribe"], ["evaluate"], ["align"], ["finetune"], ["data", "check"], ["data", "split"])
    for arguments in (["--help"], *([*command, "--help"] for command in commands)):
        assert main(arguments) == 0
        assert "some of several files failed" in capsys.readouterr().out
    assert main(["--version"]) == 0


def test_evaluate_passes_its_arguments(monkeypatch: Any, capsys: Any) -> None:
    """The subcommand parses and leaves the work to training.evaluate."""
    evaluate = pytest.importorskip("training.evaluate")
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(evaluate, "run", lambda **options: calls.append(options) or 0)
    arguments = ["evaluate", "--manifest", "m.jsonl", "--chunk-ms", "80,300", "--limit", "5", "--no-offline"]
    arguments += ["--right-context-ms", "60"]
    arguments += ["--also", "a", "--also", "b,none"]
    assert main(arguments) == 0
    assert calls == [
        {"manifest": Path("m.jsonl"), "model": "tiny.en", "adapter": "auto", "head": "auto"}
        | {"weights": "auto"}
        | {"decoder": "whisper", "latency": None}
        | {
            "chunk_ms": [80, 300],
            "right_context_ms": 60,
            "beam_size": 1,
            "second_pass": False,
            "limit": 5,
            "alignments": None,
        }
        | {"workers": 1, "output": None, "offline": False, "also": ["a", "b,none"], "report": None}
    ]
    assert main(["evaluate", "--manifest", "m.jsonl", "--chunk-ms", "80,20"]) == 2
    assert main(["evaluate"]) == 2
    assert main([*arguments, "--robust.method", "none"]) == 2  # settings are finetune's alone


def test_settings_of_finetune_may_stand_anywhere(monkeypatch: Any) -> None:
    """Before or after the file, as one argument or two; the parser's own options are not taken for some."""
    run = pytest.importorskip("training.finetune.run")
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "main", lambda **options: calls.append(options) or 0)
    settings = ["--adapter.steps", "9", "--seed=3"]
    for arguments in ([*settings, "c.yaml", "--smoke"], ["--smoke", "c.yaml", *settings]):
        assert main(["finetune", *arguments]) == 0
    assert calls[0] == calls[1]
    assert calls[0] == {
        "config": Path("c.yaml"),
        "settings": settings,
        "smoke": True,
        "print_config": False,
    }


def test_the_command_knows_every_layout(capsys: Any) -> None:
    """The list of `data check` is that of the readers, which the command must not import to parse."""
    sources = pytest.importorskip("training.sources")
    assert ("auto", *sources.LAYOUTS) == clients.train.LAYOUTS


def test_an_error_of_a_subcommand_is_one_line(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    """Our own errors and the system's become one line and exit code 2; bugs keep their traceback."""
    (tmp_path / "a.raw").touch()

    def fail_with(error: Exception) -> int:
        def run(args: Any) -> int:
            raise error

        monkeypatch.setattr(clients.transcribe, "run", run)
        return main(["transcribe", "a.wav"])

    assert fail_with(CheckpointError("weights are\ntruncated")) == 2
    assert capsys.readouterr().err == "foresound: error: weights are truncated\n"
    assert fail_with(PermissionError(13, "Permission denied", "m.jsonl")) == 2
    assert capsys.readouterr().err.startswith("foresound: error: m.jsonl: Permission denied")
    with pytest.raises(ZeroDivisionError):
        fail_with(ZeroDivisionError())


def test_importing_the_command_and_its_help_need_no_torch() -> None:
    """``foresound --help`` answers at once."""
    code = (
        "import sys, clients.cli; "
        "assert clients.cli.main(['transcribe', '--help']) == 0; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
