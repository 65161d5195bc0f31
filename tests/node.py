"""Programs for Node with packages of the npm registry, for tests with vendors' SDKs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_INSTALL_S = 120.0


def modules(*packages: str) -> Path:
    """A folder with the packages and what they need, installed once; the test is skipped without npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    name = "-".join(package.strip("@").replace("/", "_") for package in packages)
    folder = Path(tempfile.gettempdir()) / f"foresound-npm-{os.getuid()}" / name
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S)
        if result.returncode:
            pytest.skip(f"npm cannot install {packages}: {result.stderr[-300:]}")
        (folder / "complete").touch()
    return folder / "node_modules"


async def run(script: str, *arguments: str, modules: Path, **environment: str) -> list[dict[str, Any]]:
    """Run a CommonJS program; return the JSON lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        "node",
        "-e",
        script,
        "--",
        *arguments,
        env={**os.environ, "NODE_PATH": str(modules), **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return [json.loads(line) for line in output.decode().splitlines()]
