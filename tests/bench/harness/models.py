"""The files that are measured: made where they are missing, from nothing but seeds."""

import dataclasses
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Shape:
    vocabulary: int
    kv_bytes_per_token: int  # of 16 bits, all layers


SHAPES = {"dense": Shape(32000, 2 * 512 * 2 * 16), "switch": Shape(32000, 2 * 512 * 2 * 16),
          "rre": Shape(32000, 2 * 512 * 2 * 16), "wide": Shape(50432, 2 * 2048 * 2 * 16)}


@dataclasses.dataclass(frozen=True)
class Model:
    path: pathlib.Path
    vocabulary: int
    kv_bytes_per_token: int
    scion_weights: str | None = None  # --weights, for a model that exists in bf16 only


class Models:
    """directory: where files lie, named {shape}-{type}.gguf, and the RRE twin as the directory rre. quantize: a peer's
    llama-quantize, or None: then only BF16 files can be made."""

    def __init__(self, directory, quantize):
        self.directory, self.quantize = pathlib.Path(directory).resolve(), quantize

    def get(self, row):
        """The row's model, made if it is missing. ValueError says what is missing to make it."""
        shape = SHAPES[row.shape]
        if row.shape == "rre":
            path = self.directory / "rre"
            if not path.exists():
                self._make(path, HERE / "make_model.py", "rre")
            weights = {"BF16": "bf16", "Q8_0": "q8", "Q4_0": "q4"}[row.type]
            return Model(path, shape.vocabulary, shape.kv_bytes_per_token, scion_weights=weights)
        return Model(self._gguf(row.shape, row.type), shape.vocabulary, shape.kv_bytes_per_token)

    def _gguf(self, shape, type_):
        path = self.directory / f"{shape}-{type_}.gguf"
        if path.exists():
            return path
        if type_ == "BF16":
            self._make(path, HERE / "make_gguf.py", shape)
            return path
        if self.quantize is None:
            raise ValueError(f"{path} is missing, and only a peer's llama-quantize can make it")
        source = self._gguf(shape, "BF16")
        new = path.with_suffix(".new")
        subprocess.run([self.quantize, source, new, type_], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        new.rename(path)
        return path

    def _make(self, path, script, shape):
        self.directory.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        print(f"making {path}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, script, shape, new], check=True, stdout=subprocess.DEVNULL)
        new.rename(path)


def read_into_page_cache(path):
    """Reads the files once, so that no engine pays for the disk."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb", buffering=0) as data:
                while data.read(1 << 24):
                    pass
