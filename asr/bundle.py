"""One folder with all that a finetuned model needs beside its base weights: adapter, head, what they fit.

``foresound finetune`` writes such folders; :meth:`asr.recognizer.Recognizer.load` takes them for a model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from asr.errors import AdapterError

FILE = "foresound.json"
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """What a folder says of itself.

    Attributes:
        base_model: Name or path of the base weights; a relative path starts at the folder.
        adapter: The causal adapter's folder in it, None if there is none.
        head: The transducer head's folder in it, None if there is none.
        format: Version of this description.
    """

    base_model: str
    adapter: str | None = None
    head: str | None = None
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the description into a folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_bundle(folder: str | Path) -> Bundle | None:
    """Read a folder's description.

    Args:
        folder: A path, or the name of a checkpoint.

    Returns:
        What it holds, with paths that can be opened from here; None if it is no such folder.

    Raises:
        AdapterError: The description is damaged, from a later release, or names what is not there.
    """
    folder = Path(folder)
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        bundle = Bundle(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(f"{path}: not a description of a model folder ({error})") from error
    if bundle.format != FORMAT:
        raise AdapterError(
            f"{path}: format {bundle.format}, and this release reads {FORMAT}; update foresound"
        )
    return Bundle(
        str(folder / bundle.base_model) if bundle.base_model.startswith((".", "/")) else bundle.base_model,
        _part(folder, "adapter", bundle.adapter),
        _part(folder, "head", bundle.head),
    )


def _part(folder: Path, name: str, part: str | None) -> str | None:
    """The path of a part, which must be there if there is one."""
    if part is not None and not (folder / part).is_dir():
        raise AdapterError(f"{folder / FILE}: its {name} {part!r} is not in the folder; copy it whole")
    return None if part is None else str(folder / part)


def base_of(model: str | Path) -> str | Path:
    """The base weights of a model folder; anything else is returned as it is."""
    bundle = read_bundle(model)
    return bundle.base_model if bundle else model
