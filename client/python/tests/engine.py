"""The C++ programs, as the tests need them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO = ROOT / "deploy/demo"
BIN = pathlib.Path(os.environ.get("SCION_BIN", ROOT / "build/release/bin"))
sys.path.append(str(ROOT / "tests/e2e"))  # for moe_serve.py


def run(program: str, *arguments: object) -> str:
    """stdout. AssertionError, with stderr, if the program fails."""
    done = subprocess.run([str(BIN / program), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def config_of(model: pathlib.Path) -> dict:
    return json.loads((model / "config.json").read_text())


def logits(model: pathlib.Path, domain: str, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The C++ engine's, in fp32 throughout: one [tokens, vocab_size] per sequence."""
    with tempfile.TemporaryDirectory() as work:
        ids, out = pathlib.Path(work) / "ids", pathlib.Path(work) / "logits"
        ids.write_text("".join(f"0 {' '.join(map(str, s))}\n" for s in sequences))
        run("dump_logits", model, ids, out, "--domain", domain, "--weights", "fp32", "--kv-type", "fp32")
        rows = np.fromfile(out, np.float32).reshape(-1, config_of(model)["vocab_size"])
    assert len(rows) == sum(map(len, sequences))
    return np.split(rows, np.cumsum([len(s) for s in sequences])[:-1])


def random_ids(model: pathlib.Path, lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, config_of(model)["vocab_size"], n).tolist() for n in lengths]
