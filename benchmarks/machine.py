"""On what and with which code a benchmark ran; every benchmark's last line says so."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from asr import int8


def machine() -> dict[str, Any]:
    """The hardware and the commit, for a benchmark's JSON line."""
    return {"hardware": hardware(), "commit": commit()}


def hardware() -> dict[str, Any]:
    """Return the processor's name and cores, the threads that torch uses and the levels of 8-bit weights."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    levels = int8.weight_levels()
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return {"cpu": name, "cores": cores, "torch_threads": threads, "weight_levels": levels}


def fastest_weights() -> str:
    """Return the format of weights in which streams are computed fastest here."""
    return "int8" if int8.weight_levels() else "fp32"


def commit() -> str | None:
    """Return the short name of the commit that runs, None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
