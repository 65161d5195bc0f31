"""The logs of training runs: CSV files, and the same numbers for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asr.errors import OptionError


def log_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, with a header if it is new."""
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        if new:
            file.write(",".join(row) + "\n")
        file.write(",".join(str(value) for value in row.values()) + "\n")


class RunLog:
    """Writes rows of numbers into ``NAME.csv`` and, if asked for, into TensorBoard's event files."""

    def __init__(self, folder: Path, *, tensorboard: bool, is_writer: bool = True) -> None:
        """Open the log.

        Args:
            folder: The run's; must exist. Event files go into ``tensorboard`` in it.
            tensorboard: Write event files too.
            is_writer: Whether this process writes; the others of a run do not.

        Raises:
            OptionError: TensorBoard is asked for and not installed.
        """
        self._folder = folder
        self._is_writer = is_writer
        self._board: Any = None
        if tensorboard and is_writer:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ModuleNotFoundError as error:
                raise OptionError(
                    f"tensorboard needs the module {error.name}; install foresound[train], or set it to false"
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, name: str, row: dict[str, Any]) -> None:
        """Append a row; ``row["step"]`` is the step that its numbers are of.

        Args:
            name: Of the CSV file, and of the group in TensorBoard.
            row: Values by column, the same columns each time.
        """
        if not self._is_writer:
            return
        log_row(self._folder / f"{name}.csv", row)
        if self._board is not None:
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._board.add_scalar(f"{name}/{key}", value, row["step"])

    def close(self) -> None:
        """Flush everything to the disk."""
        if self._board is not None:
            self._board.close()
