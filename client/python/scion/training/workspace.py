"""The folder of a run beside its result, `.OUT.scion-train`: token ids, checkpoint, curve; one process at a time."""

import fcntl
import json
import os
import pathlib
import shutil
from types import TracebackType
from typing import Any

from scion.training import checkpoint
from scion.training.errors import TrainingError


class Workspace:
    """As a context: makes the folder, or takes it up to resume, and locks it.

    A run that fails before its first checkpoint leaves nothing; after it, the folder stays, to be resumed. finish()
    removes it. TrainingError: `out` exists, its place can't be written to, the folder is another process's or holds an
    unfinished run.
    """

    def __init__(self, out: pathlib.Path, resume: bool) -> None:
        self._out, self._resume = pathlib.Path(os.path.abspath(out)), resume
        self.folder = self._out.with_name(f".{self._out.name}.scion-train")
        self._descriptor = -1

    def __enter__(self) -> "Workspace":
        if os.path.lexists(self._out):
            raise TrainingError(f"{self._out} exists")
        if not self._out.parent.is_dir():
            raise TrainingError(f"{self._out.parent}: no such folder")
        if self._resume and not self.has_checkpoint:
            raise TrainingError(f"{self.folder}: no checkpoint to resume from")
        self.folder.mkdir(exist_ok=True)
        self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise TrainingError(f"{self.folder}: another process works here") from None
        if self.has_checkpoint and not self._resume:
            os.close(self._descriptor)
            raise TrainingError(
                f"{self.folder} holds an unfinished run: --resume goes on with it; or remove the folder"
            )
        if not self._resume:
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.has_checkpoint:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._descriptor)

    @property
    def has_checkpoint(self) -> bool:
        return (self.folder / checkpoint.NAME).is_file()

    def directory(self) -> pathlib.Path:
        """A new one of the result's own name, which the lock's lineage will have, to become the result."""
        directory = self.folder / "result" / self._out.name
        shutil.rmtree(directory.parent, ignore_errors=True)  # of a run that was killed while it wrote
        directory.mkdir(parents=True)
        return directory

    def finish(self) -> None:
        shutil.rmtree(self.folder)

    def write_notes(self, name: str, content: dict[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content), encoding="utf-8")

    def notes(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None
