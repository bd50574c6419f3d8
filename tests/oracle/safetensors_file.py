"""safetensors files, read and written here so that the references share no reader with anybody.

A file is a little-endian u64 (the header's length), a JSON object {name: {dtype, shape, data_offsets}}, then the data.
"""

import json
import pathlib
import struct

import numpy as np
import torch

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I32": torch.int32, "U8": torch.uint8}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path):
    """{name: tensor} of one file."""
    data = pathlib.Path(path).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + header_bytes])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(bytearray(data[begin:end]), dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write(path, tensors, metadata=None):
    """Writes {name: tensor} in the order given."""
    header = {"__metadata__": metadata} if metadata else {}
    parts, offset = [], 0
    for name, tensor in tensors.items():
        data = raw_bytes(tensor)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def raw_bytes(tensor):
    """The bytes of a tensor's elements in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().astype(np.uint8).tobytes()
