#!/usr/bin/env python3
"""The demo model's perplexity per token, texts by domains, on deploy/demo/eval, as `moe-client score --matrix` has it.

usage: perplexity.py             recomputes the matrix and compares it with deploy/demo/eval/matrix.json
       perplexity.py --write     writes matrix.json

Each text is scored in windows of at most 256 tokens: the tokens that the tokenizer itself puts before a text (none, for
the demo's), then the next tokens of the text. Every token but a window's first is scored, given those before it in the
window; windows of one token are left out. Perplexity is exp(-sum of log-likelihoods / scored tokens).
"""

import argparse
import json
import math
import pathlib
import sys

import torch
from tokenizers import Tokenizer

from reference import Reference

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
MATRIX = DEMO / "eval" / "matrix.json"
WINDOW_TOKENS = 256
TOLERANCE = 1e-4  # of a perplexity
LEAST_ADVANTAGE = 1.1  # of the own domain over the next best


def windows_of(text, tokenizer):
    before = tokenizer.encode("").ids
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    step = WINDOW_TOKENS - len(before)
    windows = [before + ids[begin:begin + step] for begin in range(0, len(ids), step)]
    return [window for window in windows if len(window) > 1]


def log_likelihood(model, window, domain):
    logits = model.logits(window[:-1], domain)
    chosen = logits.gather(1, torch.tensor(window[1:])[:, None])[:, 0]
    return float((chosen - logits.logsumexp(-1)).double().sum())


def measure():
    model = Reference(DEMO)
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    rows = {}
    for row in model.domains:
        texts = [json.loads(line)["text"] for line in (DEMO / "eval" / f"{row}.jsonl").open(encoding="utf-8")]
        windows = [window for text in texts for window in windows_of(text, tokenizer)]
        scored = sum(len(window) - 1 for window in windows)
        perplexity = {}
        for domain in model.domains:
            total = sum(log_likelihood(model, window, domain) for window in windows)
            perplexity[domain] = round(math.exp(-total / scored), 4)
        text_bytes = sum(len(text.encode()) for text in texts)
        rows[row] = {"documents": len(texts), "bytes": text_bytes, "scored_tokens": scored, "perplexity": perplexity,
                     "bits_per_byte": round(math.log2(perplexity[row]) * scored / text_bytes, 4)}
        print(row, rows[row], flush=True)
    return rows


def judge(rows):
    """Says how much better each text's own domain is than the next best; whether that is enough for all."""
    is_enough = True
    for row, cells in rows.items():
        own = cells["perplexity"][row]
        next_best = min(value for domain, value in cells["perplexity"].items() if domain != row)
        print(f"{row}: the next best domain's perplexity is {next_best / own:.2f} times the own one's")
        is_enough &= next_best / own >= LEAST_ADVANTAGE
    return is_enough


def difference(rows, committed):
    """The greatest of a perplexity, relative; infinite if other tokens were scored."""
    if any(rows[row]["scored_tokens"] != committed[row]["scored_tokens"] for row in rows):
        return math.inf
    return max(abs(rows[row]["perplexity"][domain] / value - 1)
               for row in rows for domain, value in committed[row]["perplexity"].items())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = measure()
    is_good = judge(rows)
    if arguments.write:
        MATRIX.write_text(json.dumps(rows, indent=1) + "\n")
    else:
        moved = difference(rows, json.loads(MATRIX.read_text()))
        print(f"the matrix differs by {moved:.1e}")
        is_good &= moved <= TOLERANCE
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
