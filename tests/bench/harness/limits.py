"""The machine's limits, measured by limits.c, and what roof.py makes of them for a row."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import roof
from harness.rows import OUTPUT_TOKENS, PROMPT_TOKENS

LIMITS_C = pathlib.Path(__file__).resolve().parents[1] / "limits.c"
LINE = re.compile(r"^(?P<what>.+?)\s+T=(?P<threads>\d)\s+median\s+(?P<median>[\d.]+)\s")
# roof.py's names of our shapes: wide has olmoe's sizes. The RRE twin is switch with four experts in a domain and no gate.
ROOF_SHAPE = {"dense": "dense", "switch": "switch", "wide": "olmoe", "rre": "rre"}
roof.S["rre"] = dict(roof.S["switch"], E=4, router=0)
PEAK_NAME = {"BF16": "bf16", "Q8_0": "i8", "Q4_0": "i8"}
BLOCK_SCALE_SHARE = 0.8


def parse(text):
    """limits.c's output as {threads: {"bandwidth": bytes/s, "bf16": FLOP/s, "i8": OP/s}}: medians, the best way to read
    memory."""
    found = {}
    for match in map(LINE.match, text.splitlines()):
        if not match:
            continue
        limits = found.setdefault(int(match["threads"]), {"bandwidth": 0.0, "bf16": 0.0, "i8": 0.0})
        value = float(match["median"]) * 1e9
        if match["what"].startswith("read "):
            limits["bandwidth"] = max(limits["bandwidth"], value)
        elif match["what"].startswith("bf16 "):
            limits["bf16"] = value
        elif match["what"].startswith("int8 "):
            limits["i8"] = value
    return found


def measure(build_directory, threads):
    """Builds and runs limits.c (half a minute, 4 GiB). Nothing where it can't run: it needs AVX-512 with bf16 and int8
    dot products, and knows one thread and two."""
    program = pathlib.Path(build_directory) / "limits"
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([os.environ.get("CC", "gcc"), "-w", "-O3", "-march=native", "-pthread", LIMITS_C, "-o",
                    program], check=True)
    ran = subprocess.run([program], capture_output=True, text=True)
    limits = parse(ran.stdout).get(threads)
    if ran.returncode != 0 or limits is None or 0 in limits.values():
        return None
    return dict(limits, threads=threads, time=time.time())


def read_bandwidth(bin_directory, threads):
    """Bytes/s at which kernels_bench reads memory right now (a second, 1 GiB); it knows one thread and two."""
    ran = subprocess.run([pathlib.Path(bin_directory) / "kernels_bench", "--benchmark_format=json",
                          f"--benchmark_filter=^read_bandwidth/threads:{threads}/"],
                         check=True, capture_output=True, text=True)
    return json.loads(ran.stdout)["benchmarks"][0]["bytes_per_second"]


class AtLeast:
    """Lets a measurement count only where memory was read at `least` bytes/s right before it and right after: a machine
    that others share may give half of its bandwidth in one minute and all of it in the next."""

    PATIENCE_SECONDS = 1800
    PAUSE_SECONDS = 1

    def __init__(self, least, read, clock=time.monotonic, sleep=time.sleep):
        self._least, self._read, self._clock, self._sleep = least, read, clock, sleep

    def measure(self, work):
        """work()'s figures, with the two readings beside them. TimeoutError if the machine isn't as fast for so long."""
        begin = self._clock()
        while self._clock() - begin < self.PATIENCE_SECONDS:
            if (before := self._read()) < self._least:
                self._sleep(self.PAUSE_SECONDS)
                continue
            figures = work()
            if (after := self._read()) >= self._least:
                return dict(figures, bandwidths_beside=[before, after])
            print(f"memory was read at {before / 1e9:.0f} GB/s before a measurement, at {after / 1e9:.0f} after it: "
                  "it does not count", file=sys.stderr, flush=True)
        raise TimeoutError(f"memory was not read at {self._least / 1e9:g} GB/s before and after a measurement within "
                           f"{self.PATIENCE_SECONDS / 60:g} minutes")


def limit(row, limits):
    """Tokens/s that the row can't exceed on a machine of these limits; nothing for a row without such a limit."""
    threads = limits["threads"]
    roof.BW[threads] = limits["bandwidth"]
    for peak in ("bf16", "i8"):
        roof.PK[peak][threads] = limits[peak]
    shape, type_ = ROOF_SHAPE[row.shape], row.type.lower()
    if row.kind == "prefill":
        return 1 / _prompt_seconds(shape, type_, row.prompt, threads)
    if row.kind == "decode":
        # Streams of several domains visit experts of their own domain: as that many batches that share the trunk.
        context = row.depth + 32
        if row.domains == 1:
            return roof.decode(shape, type_, B=row.streams, T=threads, ctx=context)[1]
        return _mixed(shape, type_, row, threads, context)
    if row.kind == "server":
        decode = roof.decode(shape, type_, B=row.streams, T=threads, ctx=PROMPT_TOKENS + OUTPUT_TOKENS / 2)[1]
        return 1 / (1 / decode + PROMPT_TOKENS / OUTPUT_TOKENS * _prompt_seconds(shape, type_, PROMPT_TOKENS, threads))
    return None


def _prompt_seconds(shape, type_, tokens, threads):
    """Of one token. Scales of blocks of 32 leave 80% of the int8 peak to the matrices: two multiplications beside eight
    dot products, in the same units. Attention multiplies keys and values of 16 bits. In the last layer only keys and
    values are needed of all tokens, all else of the last one; roof.py counts it for all."""
    sizes = roof.S[shape]
    matrices = roof.prefill(shape, type_, n=0, T=threads)[0]
    attention = roof.prefill(shape, type_, n=tokens, T=threads)[0] - matrices
    key_and_value = 2 * sizes["d"] * sizes["kv"]
    matrices -= 2 * (sizes["attn"] - key_and_value + sizes["K"] * sizes["ex"]) * (1 - 1 / tokens)
    attention *= 1 - (1 - 2 / tokens) / sizes["L"]
    number = roof.Q[type_][2]
    peak = roof.PK[number][threads] * (BLOCK_SCALE_SHARE if number == "i8" else 1)
    return matrices / peak + attention / roof.PK["bf16"][threads]


def _mixed(shape, type_, row, threads, context):
    sizes = roof.S[shape]
    part = row.streams // row.domains
    distinct = row.domains * sizes["E"] * (1 - (1 - sizes["K"] / sizes["E"]) ** part)
    one_batch, _ = roof.decode(shape, type_, B=row.streams, T=threads, ctx=context)
    counted = sizes["E"] * (1 - (1 - sizes["K"] / sizes["E"]) ** row.streams)
    step_bytes = one_batch + sizes["L"] * (distinct - counted) * sizes["ex"] * roof.Q[type_][0]
    return row.streams * roof.BW[threads] / step_bytes
