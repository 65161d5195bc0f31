"""One folder with everything of a finished run that ``--model`` needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from asr.bundle import Bundle
from asr.checkpoint import available_names
from training.finetune.config import FinetuneConfig, dump_config


def export(
    config: FinetuneConfig, *, adapter: Path | None, head: Path | None, folder: Path | None = None
) -> Path:
    """Write the model folder of a run; one that is there is replaced when the new one is whole.

    Args:
        config: The run.
        adapter: The adapter's folder, None if there is none.
        head: The head's folder, None if there is none.
        folder: Where; the run's own ``model`` if None.

    Returns:
        The folder, which holds ``foresound.json``, the parts with their cards, and the run's settings.
    """
    folder = folder or config.output / "model"
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, source in (("adapter", adapter), ("head", head)):
        if source is not None:
            shutil.copytree(source, temporary / name)
    base = config.model
    if base not in available_names():
        base = str(Path(base).absolute())
    Bundle(base, "adapter" if adapter else None, "head" if head else None).write(temporary)
    (temporary / "finetune.yaml").write_text(dump_config(config), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder
