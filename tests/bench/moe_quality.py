#!/usr/bin/env python3
"""Scion's logits beside llama.cpp's own on gate-routed GGUF files, where both choose the same experts.

usage: moe_quality.py --peer DIR [--kv-type TYPE] [--tokens N] [--no-reference] MODEL-TYPE.gguf...

A gate's two best experts may lie closer together than rounding moves their scores. A side that takes the other one
computes another function from there on, and its logits say nothing about kernels. So positions are compared where both
sides chose the same experts in every layer, and it is told how many they are; beside them stand the peer against itself
with flash attention off, and both against Scion in fp32 throughout. The files may have random weights (compare.py makes
such); token ids are random, in windows of 256. An earlier position of a window may have had other experts: its keys and
values then differ, which is left in. K and V are fp16 on both sides, unless asked otherwise of Scion's.

A file counts as explained beyond quality.py's bounds where Scion's mean KL is at most 1.35 times the peer's own against
itself. It is missed, too, where a gate takes another expert more than 1.35 times as often as with the peer itself: if
such choices fall independently, where the share of positions is below the peer's own to the power of 1.35, less 2% that
1,024 positions leave to chance. DIR is as for quality.py. Needs numpy. Exits with 1 when one is missed.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

import numpy

import quality

WINDOW_TOKENS = 256
SHARE_SLACK = 0.02


def same_choices(one, other, positions):
    """Per position, whether the experts of all layers are the same. one, other: files of int32
    [positions, layers, experts a token], ascending within a layer. ValueError if they are not as long, or empty."""
    theirs, ours = (numpy.fromfile(path, numpy.int32) for path in (one, other))
    if len(theirs) != len(ours) or len(ours) == 0 or len(ours) % positions != 0:
        raise ValueError(f"{len(theirs)} and {len(ours)} experts for {positions} positions")
    return (theirs.reshape(positions, -1) == ours.reshape(positions, -1)).all(axis=1)


def measure(peer, scion, model, windows, work, kv_type, with_reference):
    """{"peer scion", "peer plain", "reference scion", "reference peer": {"share" of positions with equal experts, and over
    these "mean_kl", "top1"}}"""
    quality.write_sequences(work / "windows", windows, 0)
    logits = {name: work / f"{name}.logits" for name in ("peer", "plain", "scion", "reference")}
    experts = {name: work / f"{name}.experts" for name in logits}
    peer.run(model, "logits", work / "windows", logits["peer"], experts["peer"])
    peer.run(model, "plain-logits", work / "windows", logits["plain"], experts["plain"])
    subprocess.run([scion, model, work / "windows", logits["scion"], "--experts", experts["scion"],
                    "--kv-type", kv_type], check=True)
    pairs = [("peer", "scion"), ("peer", "plain")]
    if with_reference:
        subprocess.run([scion, model, work / "windows", logits["reference"], "--experts", experts["reference"],
                        "--weights", "fp32", "--kv-type", "fp32"], check=True)
        pairs += [("reference", "scion"), ("reference", "peer")]
    positions = sum(map(len, windows))
    vocabulary = os.path.getsize(logits["peer"]) // 4 // positions
    found = {}
    for one, other in pairs:
        equal = same_choices(experts[one], experts[other], positions)
        divergence, same = quality.compare_logits(logits[one], logits[other], vocabulary)
        found[f"{one} {other}"] = {"share": equal.mean(), "mean_kl": divergence[equal].mean(), "top1": same[equal].mean()}
    return found


def verdict(type_, measured):
    most, least = quality.bounds(type_)
    ours, own = measured["peer scion"], measured["peer plain"]
    if ours["share"] < own["share"] ** quality.NOISE_RATIO - SHARE_SLACK:
        return quality.MISSED
    if ours["mean_kl"] <= most and ours["top1"] >= least:
        return quality.KEPT
    return quality.EXPLAINED if ours["mean_kl"] <= max(most, quality.NOISE_RATIO * own["mean_kl"]) else quality.MISSED


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--bin", type=pathlib.Path, default=quality.ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=quality.ROOT / "build/bench/quality")
    parser.add_argument("--kv-type", default="fp16", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--tokens", type=int, default=1024, help="multiple of 256 (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=32000, help="ids are below (default: %(default)s)")
    parser.add_argument("--no-reference", action="store_true", help="for files whose weights in fp32 don't fit memory")
    parser.add_argument("models", type=pathlib.Path, nargs="+", metavar="MODEL-TYPE.gguf")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    peer, scion = quality.Peer(args.peer, args.work), args.bin / "dump_logits"
    ids = numpy.random.default_rng(1).integers(args.vocabulary, size=(args.tokens // WINDOW_TOKENS, WINDOW_TOKENS))
    missed = []
    for model in args.models:
        type_ = re.search(r"-([A-Z0-9_]+)$", model.stem)
        if type_ is None or type_[1] not in quality.TYPES:
            sys.exit(f"moe_quality.py: {model.name} does not end in -TYPE.gguf")
        measured = measure(peer, scion, model, ids.tolist(), args.work, args.kv_type, not args.no_reference)
        result = verdict(type_[1], measured)
        for pair, m in measured.items():
            print(f"{model.stem} {pair}: {m['share']:.1%} of the positions with equal experts; there mean KL "
                  f"{m['mean_kl']:.2e}, top-1 {m['top1']:.2%}", flush=True)
        print(f"{model.stem} {result}", flush=True)
        if result == quality.MISSED:
            missed.append(model.stem)
    for path in (*args.work.glob("*.logits"), *args.work.glob("*.experts")):
        path.unlink()
    sys.exit(f"moe_quality.py: missed by {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
