"""On what and with which code a benchmark ran; every benchmark's last line says so."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The hardware and the commit, for a benchmark's JSON line."""
    return {"hardware": hardware(), "commit": commit()}


def hardware() -> dict[str, Any]:
    """Return the processor's name, its cores and the threads that torch uses."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {"cpu": name, "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}


def commit() -> str | None:
    """Return the short name of the commit that runs, None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
