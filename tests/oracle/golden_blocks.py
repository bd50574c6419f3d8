#!/usr/bin/env python3
"""Rows of fp32 weights and what the `gguf` package rounds them to: tests/golden/quantize, whose README describes them.

usage: golden_blocks.py            rounds the committed rows again and compares; exit 1 on a difference
       golden_blocks.py --write    makes the rows anew
"""

import argparse
import pathlib
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T

import safetensors_file

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "quantize" / "blocks.safetensors"
ROWS, COLUMNS = 32, 64
TYPES = {"q8_0": T.Q8_0, "q4_0": T.Q4_0}


def rows():
    rng = np.random.default_rng(20260601)
    x = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    x[0] = 0
    # Not a whole block of these: GGML's scale is then -0.0 in Q4_0, the package's 0.0.
    x[1, 32:60] = -0.0
    x[2] = 1
    x[3] = -3.5
    # The greatest magnitude comes twice, with either sign: the first decides.
    x[4, 5], x[4, 9], x[4, 40], x[4, 50] = 4, -4, -4, 4
    # Exactly between two codes: 127 codes of a unit, and 8 of one.
    x[5, :32] = np.arange(32) - 15.5
    x[5, 0], x[5, 32:] = 127, (np.arange(32) - 16) / 2
    x[6, :32] = np.arange(32) / 4 - 4
    x[6, 0] = -8
    # Scales that are subnormal halves, or nothing at all in a half.
    x[7] *= 1e-6
    x[8] *= 1e-9
    x[9] *= 1e-36
    # Large, up to where Q4_0's scale is the largest half.
    x[10] *= 1e4
    x[11, 0], x[11, 40] = 8 * 65504, -8 * 65504
    # One outlier.
    x[12, 17] = 1e3
    x[13:20] = (x[13:20].view(np.uint32) & 0xffff0000).view(np.float32)  # as bf16
    x[20:24] = x[20:24].astype(np.float16)
    return x


def rounded(x):
    return {name: torch.from_numpy(gguf.quants.quantize(x, dtype).copy()) for name, dtype in TYPES.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        GOLDEN.parent.mkdir(exist_ok=True)
        x = rows()
        safetensors_file.write(GOLDEN, {"values": torch.from_numpy(x)} | rounded(x))
    golden = safetensors_file.read(GOLDEN)
    again = rounded(golden["values"].numpy())
    differs = [name for name, blocks in again.items() if not torch.equal(blocks, golden[name])]
    print("FAILED: differ: " + ", ".join(differs) if differs else f"{', '.join(TYPES)}: the same bytes")
    sys.exit(1 if differs else 0)


if __name__ == "__main__":
    main()
