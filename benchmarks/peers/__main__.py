"""foresound beside other streaming recognisers: same machine, same audio, in turns, the same Whisper weights.

``python -m benchmarks.peers setup`` installs the peers into an environment of their own, pinned; then
``python -m benchmarks.peers run --manifest M.jsonl`` lets every system stream every utterance, one system
after the other on each, with one thread each. Nothing waits: as in :mod:`benchmarks.latency` the clock is
simulated from the processor time that calls take, so a slow system falls behind as it would in life. With
``--answers`` a run that was cut goes on, and another one adds systems or utterances to the same table.

A system is written ``NAME[:LATENCY][@STEP_S]``: how far our transducer looks ahead, and seconds of new audio
that a call waits for.

word latency       from a word's end to the moment from which on it was shown and never changed
committed          the same until it was promised not to change
streams per core   one over the processor seconds that a second of a stream's audio takes
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from asr import SAMPLE_RATE, ForesoundError, Recognizer
from asr.checkpoint import load_checkpoint, package_files
from benchmarks.machine import commit, machine
from benchmarks.peers.answers import BASELINE, Answers
from benchmarks.peers.report import draw, format_rows
from benchmarks.utterances import evenly_spread
from training.evaluate import reference_times
from training.manifest import load_audio

HERE = Path(__file__).parent
ENVIRONMENT = Path("peers-environment")
SYSTEMS = (
    "foresound",
    "foresound-8",
    "foresound-16",
    "wlk-localagreement",
    "wlk-localagreement@1",
    "wlk-simulstreaming",
    "wlk-simulstreaming@1",
    "faster-whisper",
    "openai-whisper",
    "moonshine",
    "pocketsphinx",
)


class Worker:
    """A system in a process of its own."""

    def __init__(self, system: str, *, python: Path, weights: Weights, log: Path) -> None:
        """Start it and wait until it is ready.

        Args:
            system: ``NAME[:LATENCY][@STEP_S]`` with a name of ``systems.py``.
            python: Of the environment that has it.
            weights: What it is to load.
            log: Where its messages go.

        Raises:
            ForesoundError: It does not start.
        """
        named, _, step_s = system.partition("@")
        name, _, latency = named.partition(":")
        command = [str(python), str(HERE / "worker.py"), name, *weights.options()]
        command += ["--latency", latency] if latency else []
        command += ["--step-s", step_s] if step_s else []
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ours = {"PYTHONPATH": str(HERE.parents[1])} if is_ours(system) else {}
        self._log = log
        with log.open("w") as messages:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                env={**os.environ, **one_thread, **ours},
            )
        self.ready = self._answer()

    def play(self, samples: Path) -> dict[str, Any]:
        """Stream a file of samples.

        Args:
            samples: ``.npy``, float32 at 16 kHz.

        Returns:
            The worker's answer.

        Raises:
            ForesoundError: It died.
        """
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"samples": str(samples)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = " / ".join(self._log.read_text().splitlines()[-3:])
            raise ForesoundError(f"it ended with code {self._process.returncode}: {tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Weights:
    """The same Whisper weights in the formats that systems read, and what foresound adds to them."""

    model: str
    ct2: Path
    pt: Path
    adapter: str = "auto"
    head: str = "none"

    @classmethod
    def write(cls, args: argparse.Namespace, folder: Path) -> Weights:
        """Write them to a folder, from a CTranslate2 folder or from the packages that have them."""
        ct2 = args.ct2 or join_package(args.model, folder)
        whisper = load_checkpoint(ct2).model
        pt = folder / f"{args.model}.pt"
        torch.save({"dims": asdict(whisper.dims), "model_state_dict": whisper.state_dict()}, pt)
        return cls(args.model, ct2, pt, args.adapter, args.head)

    def options(self) -> list[str]:
        """For the worker's command line."""
        named = {"model": self.model, "ct2": self.ct2, "pt": self.pt}
        named |= {"adapter": self.adapter, "head": self.head}
        return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def join_package(model: str, folder: Path) -> Path:
    """Make a CTranslate2 folder of the files in installed packages.

    Args:
        model: Whisper's name of the weights.
        folder: Where to put it.

    Returns:
        The new folder.

    Raises:
        ForesoundError: No installed package has them.
    """
    files = package_files(model)
    if files is None:
        raise ForesoundError(f"no installed package has the weights of {model}: give their folder with --ct2")
    ct2 = folder / f"{model}-ct2"
    ct2.mkdir()
    with (ct2 / "model.bin").open("wb") as whole:
        for file in files:
            whole.write(file.read_bytes())
    for beside in (each for file in files for each in file.parent.iterdir()):
        if beside.suffix in (".json", ".txt"):
            copy(beside, ct2)
    return ct2


def is_ours(system: str) -> bool:
    """Whether a system runs in this environment."""
    return system.startswith("foresound")


def run(args: argparse.Namespace, answers: Answers, folder: Path) -> None:
    """Stream the utterances through all systems that start, except what is known already.

    Args:
        args: The command line.
        answers: What is known; gets what is new.
        folder: For weights, samples and messages.

    Raises:
        ForesoundError: Weights or the manifest cannot be used, or a system died.
    """
    chosen = evenly_spread(args.manifest, limit=args.limit)
    missing = [
        name for name in args.systems if any(each.id not in answers.played.get(name, {}) for each in chosen)
    ]
    if not missing:
        return
    weights, code = Weights.write(args, folder), commit()
    theirs = args.environment / "bin" / "python"
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for system in missing:
            python = Path(sys.executable) if is_ours(system) else theirs
            try:
                worker = Worker(system, python=python, weights=weights, log=folder / f"{system}.log")
            except (ForesoundError, OSError) as error:
                print(f"peers: {system} does not run: {error}", file=sys.stderr)
                continue
            stack.callback(worker.close)
            workers[system] = worker
        aligner = Recognizer.load(args.model, head="none")
        for utterance in tqdm(chosen, unit="utterance", file=sys.stderr):
            samples, text = load_audio(utterance), utterance.text or ""
            if utterance.id not in answers.spoken:
                times, _ = reference_times(aligner, samples, text=text, forced=None, offline_text=None)
                spoken = {"text": text, "audio_s": len(samples) / SAMPLE_RATE}
                spoken["times"] = [(each.word, each.start_s, each.end_s) for each in times]
                answers.keep({"id": utterance.id, **spoken})
            np.save(folder / "samples.npy", samples)
            for name, worker in workers.items():
                if utterance.id not in answers.played.get(name, {}):
                    about = {"id": utterance.id, "system": name, "commit": code}
                    answers.keep(about | worker.ready | worker.play(folder / "samples.npy"))


def set_up(environment: Path) -> int:
    """Install the peers over this environment's packages, so that all use one torch."""
    venv.create(environment, with_pip=True)
    own = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    (Path(own) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "-r", str(HERE / "requirements.txt")]
    return subprocess.run(pip, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    if args.command == "setup":
        return set_up(args.environment)
    try:
        answers = Answers(args.answers, model=args.model)
        with tempfile.TemporaryDirectory() as folder:
            run(args, answers, Path(folder))
    except ForesoundError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    rows = answers.rows()
    print(format_rows(rows))
    if args.plot:
        draw(rows, args.plot, title=f"{args.model}, one thread each")
    report = {"benchmark": "peers", "model": args.model, "ratios_to": BASELINE if BASELINE in rows else None}
    print(json.dumps(report | {"rows": rows, **machine()}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="foresound beside other streaming recognisers.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure")
    for command in (running, commands.add_parser("setup", help="install the peers")):
        command.add_argument("--environment", type=Path, default=ENVIRONMENT, metavar="DIR", help="of theirs")
    add = running.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--limit", type=int, default=20, metavar="N", help="utterances, evenly spread (default: 20)")
    add("--model", default="tiny.en", help="Whisper's name of the weights (default: tiny.en)")
    add("--ct2", type=Path, metavar="DIR", help="CTranslate2 folder with them (default: from packages)")
    add("--adapter", default="auto", help="foresound's: auto, none (no words are counted) or a folder")
    add("--head", default="auto", help="of foresound-transducer: a folder, or auto (default: auto)")
    add("--answers", type=Path, metavar="FILE.jsonl", help="keep all answers there; a later run goes on")
    add(
        "--systems",
        type=lambda text: text.split(","),
        default=list(SYSTEMS),
        metavar="NAME[:LATENCY][@STEP_S],...",
        help=f"default: {','.join(SYSTEMS)}",
    )
    add("--plot", type=Path, metavar="FILE", help="draw a picture, a .png or .svg")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
