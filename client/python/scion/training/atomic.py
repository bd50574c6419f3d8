"""Files and directories that are there whole or not at all."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

from scion.training.errors import TrainingError


def sync_directory(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: pathlib.Path, write: Callable[[BinaryIO], None]) -> None:
    """Calls `write` with a temporary file beside `path`, syncs it and renames it; on any error nothing is left of it.

    OSError: as the system says, the disk being full among it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text_atomically(path: pathlib.Path, text: str) -> None:
    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def publish_directory(partial: pathlib.Path, out: pathlib.Path) -> None:
    """Syncs everything in `partial` and gives it its name. TrainingError if `out` exists by now."""
    for folder, _, names in os.walk(partial):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(pathlib.Path(folder))
    if os.path.lexists(out):
        raise TrainingError(f"{out} exists by now; what was to become it is {partial}")
    partial.rename(out)
    sync_directory(out.parent)
