"""One recogniser in a process and environment of its own: jobs on stdin, what came out on stdout.

Run by :mod:`benchmarks.peers` as a file, since a peer's environment has no foresound. The first line of the
output describes the system, then there is one line for each job; all are JSON objects.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from system import SAMPLE_RATE, Given, System
from systems import SYSTEMS


def play(system: System, samples: np.ndarray, *, step_s: float) -> dict[str, Any]:
    """Stream one recording against a simulated clock.

    A call hears all that has been said when it begins and takes the processor time that it takes. The next
    one begins when it is done and ``step_s`` of new audio are there.

    Args:
        system: A recogniser.
        samples: float32 at 16 kHz.
        step_s: Seconds of new audio that a call waits for.

    Returns:
        ``looks``, each the time on the clock with committed and draft text, and processor time.
    """
    system.begin()
    clock_s = compute_s = 0.0
    n_heard, looks = 0, []
    while n_heard < len(samples):
        clock_s = max(clock_s, min(n_heard / SAMPLE_RATE + step_s, len(samples) / SAMPLE_RATE))
        until = min(len(samples), round(clock_s * SAMPLE_RATE))
        until = max(until, n_heard + 1)
        began = time.process_time()
        committed, draft = system.hear(samples[n_heard:until])
        took = time.process_time() - began
        n_heard, clock_s, compute_s = until, clock_s + took, compute_s + took
        looks.append((clock_s, committed, draft))
    began = time.process_time()
    text = system.finish()
    took = time.process_time() - began
    looks.append((clock_s + took, text, ""))
    return {"looks": looks, "cpu_s": compute_s + took}


def largest_rss() -> int:
    """The most bytes that this process has held; getrusage() would count what it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Load a system, then play what stdin names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=sorted(SYSTEMS))
    add = parser.add_argument
    add("--model", required=True, help="name of the Whisper weights")
    add("--ct2", required=True, help="their CTranslate2 folder")
    add("--pt", required=True, help="them as openai-whisper saves them")
    add("--adapter", default="auto", help="foresound's: auto, none or a folder")
    add("--head", default="none", help="foresound's transducer head: auto, none or a folder")
    add("--latency", help="how far the transducer looks ahead (default: as trained)")
    add("--step-s", type=float, help="default: as the system's documentation has it")
    args = vars(parser.parse_args())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    began = time.perf_counter()
    system = SYSTEMS[args.pop("system")](Given(**args))
    step_s = args["step_s"] or system.step_s
    play(system, np.zeros(2 * SAMPLE_RATE, dtype=np.float32), step_s=step_s)  # what is built at the first use
    ready = {"settings": f"{system.settings}; a call per {step_s:g} s", "n_streams": system.n_streams}
    ready["hears"] = getattr(system, "hears", True)
    print(json.dumps({**ready, "start_s": time.perf_counter() - began}), file=out, flush=True)
    for line in sys.stdin:
        result = play(system, np.load(json.loads(line)["samples"]), step_s=step_s)
        result["rss_bytes"] = largest_rss()
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
