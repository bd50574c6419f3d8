"""The proof that what was to be frozen is: sha256 of every tensor's bytes, in files and in memory."""

import hashlib
import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import torch

from scion.training.errors import TrainingError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
_BLOCK_BYTES = 4 << 20
_MAX_HEADER_BYTES = 100 << 20


def read_header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's entries by tensor, and where its data begins. TrainingError if it is none."""
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES + 1
        if size > _MAX_HEADER_BYTES or size + 8 > path.stat().st_size:
            raise TrainingError(f"{path}: not a safetensors file")
        header = json.loads(file.read(size))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + size


def file_sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_hashes(path: pathlib.Path) -> dict[str, str]:
    """sha256 of each tensor's data, by name."""
    header, data = read_header(path)
    hashes = {}
    with path.open("rb") as file:
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(data + begin)
            digest, left = hashlib.sha256(), end - begin
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                left -= len(block)
            hashes[name] = digest.hexdigest()
    return hashes


def tensor_bytes(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    """What a file of that type would hold."""
    return tensor.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy().data


def tensor_hash(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    return hashlib.sha256(tensor_bytes(tensor, dtype)).hexdigest()


def check_same(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """TrainingError, by the tensors' names, if any hash differs or a tensor came or went."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise TrainingError(
            f"{what} changed though it was to be frozen: {', '.join(changed[:5])}"
            f"{f' and {len(changed) - 5} more' if len(changed) > 5 else ''}; nothing is written"
        )


def digest_of(hashes: Mapping[str, str]) -> str:
    """One hash for all."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
