#!/usr/bin/env python3
"""Scion beside other engines on the same GGUF files: single-stream decode and prefill, in turn, in one run.

usage: compare.py [--bin DIR] [--peer NAME=DIR]... [--rounds N] [--threads N] [--prefill N] [--decode N] [--out FILE]
                  FILE.gguf...

A peer's DIR holds its llama-bench. Each round runs Scion's step_bench and every peer's llama-bench once, one after the
other, on each file: the same threads, random token ids on all sides, 16-bit K and V, --prefill tokens of a prompt and
--decode tokens after an empty one, after a warm-up of the program's own. Printed are the pairs, and for each peer the
median of the rounds' ratios with their range: above 1, Scion is faster. --out keeps every figure as JSON lines, and a
run that finds a file's rounds there goes on after them.

Synthetic files come from make_gguf.py (numpy) and a peer's llama-quantize.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys


def scion(arguments, model):
    """tokens/s of (prefill, decode), and the share of the read bandwidth that decode reached."""
    text = subprocess.run([arguments.bin / "step_bench", model, "--threads", str(arguments.threads), "--rounds", "1",
                           "--prefill", str(arguments.prefill), "--depth", "0", "--decode", str(arguments.decode)],
                          check=True, capture_output=True, text=True).stdout
    found = re.search(r"median +decode ([\d.]+) tokens/s, (\d+)% of the bandwidth +prefill ([\d.]+) tokens/s", text)
    return {"prefill": float(found[3]), "decode": float(found[1]), "bandwidth": int(found[2]) / 100}


def llama_bench(arguments, directory, model):
    lines = subprocess.run([directory / "llama-bench", "-m", model, "-t", str(arguments.threads), "-r", "1", "-o", "jsonl",
                            "-p", str(arguments.prefill), "-n", str(arguments.decode), "-ctk", "f16", "-ctv", "f16"],
                           check=True, capture_output=True, text=True).stdout.splitlines()
    results = [json.loads(line) for line in lines if line.startswith("{")]
    return {"prefill": next(r["avg_ts"] for r in results if r["n_prompt"] > 0),
            "decode": next(r["avg_ts"] for r in results if r["n_gen"] > 0)}


def earlier_rounds(path):
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(model, rounds, peers):
    for work in ("decode", "prefill"):
        for peer in peers:
            ratios = [r["scion"][work] / r[peer][work] for r in rounds]
            ours = statistics.median(r["scion"][work] for r in rounds)
            theirs = statistics.median(r[peer][work] for r in rounds)
            print(f"{model.stem:16} {work:8} Scion {ours:8.1f}  {peer} {theirs:8.1f} tokens/s   ratio "
                  f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    share = statistics.median(r["scion"]["bandwidth"] for r in rounds)
    print(f"{model.stem:16} decode at {100 * share:.0f}% of the read bandwidth", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("models", nargs="+", type=pathlib.Path, metavar="FILE.gguf")
    arguments = parser.parse_args()
    peers = {}
    for peer in arguments.peer:
        name, _, directory = peer.partition("=")
        if not (pathlib.Path(directory) / "llama-bench").exists():
            sys.exit(f"compare.py: --peer {peer}: there is no llama-bench in '{directory}'")
        peers[name] = pathlib.Path(directory)
    earlier = earlier_rounds(arguments.out)
    for model in arguments.models:
        rounds = [r for r in earlier if r["model"] == model.stem and all(p in r for p in peers)]
        while len(rounds) < arguments.rounds:
            figures = {"model": model.stem, "scion": scion(arguments, model)}
            for name, directory in peers.items():
                figures[name] = llama_bench(arguments, directory, model)
            rounds.append(figures)
            print(json.dumps(figures), file=sys.stderr, flush=True)
            if arguments.out is not None:
                with arguments.out.open("a") as out:
                    out.write(json.dumps(figures) + "\n")
        report(model, rounds, peers)


if __name__ == "__main__":
    main()
