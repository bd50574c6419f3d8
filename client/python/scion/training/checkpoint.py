"""Where a run is, in one file, from which it goes on: parameters, optimiser, data position, random state, curve."""

import pathlib
from typing import Any

import torch

from scion.training.atomic import write_atomically
from scion.training.errors import TrainingError

NAME = "checkpoint.pt"
FORMAT = 1


def save(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Replaces the checkpoint in `folder`; the old one stays if that fails, with TrainingError."""
    try:
        write_atomically(folder / NAME, lambda file: torch.save({"format": FORMAT, **content}, file))
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise TrainingError(f"{folder / NAME}: can't be written: {error}; the checkpoint before it is whole") from error


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
            raise TrainingError(f"{path}: a run with another {key} ({was.get(key)!r}, now {fingerprint.get(key)!r}): "
                                "resume with the same, or remove the folder and begin anew")
    return content
