"""Where a run is, in one file, from which it goes on: parameters, optimiser, data position, random state, curve."""

import pathlib
from typing import Any, BinaryIO, cast

import torch

from scion.training.atomic import write_atomically
from scion.training.errors import TrainingError

NAME = "checkpoint.pt"
FORMAT = 1


class _File:
    """Keeps the error of a write, of which torch.save makes another one that doesn't say what happened."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Replaces the checkpoint in `folder`; the old one stays if that fails, with OSError."""

    def write(file: BinaryIO) -> None:
        watched = _File(file)
        try:
            torch.save({"format": FORMAT, **content}, cast(BinaryIO, watched))
        except RuntimeError:
            if watched.error is not None:
                raise watched.error from None
            raise

    try:
        write_atomically(folder / NAME, write)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{folder / NAME} (the one before it is whole)") from error


def load(folder: pathlib.Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """TrainingError if there is none, if it is damaged, or if it is another run's."""
    path = folder / NAME
    if not path.is_file():
        raise TrainingError(f"{path}: no checkpoint to resume from")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the unpickler say
        raise TrainingError(f"{path}: not a checkpoint, or damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TrainingError(f"{path}: not a checkpoint of this version")
    was = content["fingerprint"]
    for key in fingerprint.keys() | was.keys():
        if was.get(key) != fingerprint.get(key):
            raise TrainingError(
                f"{path}: a run with another {key} ({was.get(key)!r}, now {fingerprint.get(key)!r}): "
                "resume with the same, or remove the folder and begin anew"
            )
    return content
