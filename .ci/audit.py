#!/usr/bin/env python3
"""Tells which published advisories concern what is installed, with pip-audit; a step of ``.ci/run``.

Exit code: 0 if none does, 1 if some do, 3 if they cannot be read here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

_COMMAND = ["pip-audit", "--vulnerability-service", "osv", "--format", "json", "--skip-editable"]
_PATIENCE_S = 180
_BY_HAND = "run .ci/audit.py where they can, before a release (docs/security.md)"


def main() -> int:
    """Audit the environment that pip-audit is installed in."""
    if not shutil.which(_COMMAND[0]):
        print("audit: pip-audit is not installed; pip install pip-audit")
        return 3
    command = [*_COMMAND, "--progress-spinner", "off"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        print(f"audit: no advisories after {_PATIENCE_S} s\naudit: {_BY_HAND}")
        return 3
    try:
        dependencies = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"audit: the advisories cannot be read from here: {reason[:200]}\naudit: {_BY_HAND}")
        return 3
    found = [(each, advisory) for each in dependencies for advisory in each.get("vulns", ())]
    for each, advisory in found:
        mended = ", ".join(advisory["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']}: {advisory['id']}, mended in {mended}")
    print(f"audit: {len(dependencies)} packages, {len(found)} advisories")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
