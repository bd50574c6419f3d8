#!/usr/bin/env python3
"""Logits of the demo model, as the reference gives them: tests/golden/logits, whose README describes the files.

usage: golden_logits.py              recomputes from the committed prompts and compares; exit 1 on a difference
       golden_logits.py --write      writes the golden files anew
       golden_logits.py --bf16       says how far the reference moves if every matrix product's input is rounded to bf16
"""

import argparse
import json
import pathlib
import sys

import torch

import safetensors_file
from compare import Comparison
from reference import Reference

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
GOLDEN = ROOT / "tests" / "golden" / "logits"

GENERATED_TOKENS = 64
HIDDEN_EVERY = 4  # positions
FULL_LOGITS_PROMPTS = 2  # per domain


def prompts_of(domain):
    prompts = json.loads((GOLDEN / "prompts.json").read_text())["prompts"]
    return [prompt["ids"] for prompt in prompts if prompt["domain"] == domain]


def per_position(logits):
    """What is kept of the logits [tokens, vocab_size] at every position."""
    top = logits.topk(2, dim=-1)
    return {"argmax": top.indices[:, 0].int(), "top_logit": top.values[:, 0],
            "margin": top.values[:, 0] - top.values[:, 1],
            "logsumexp": logits.double().logsumexp(-1).float(), "max_abs_logit": logits.abs().amax(-1)}


def golden_of(model, domain, sequences, prompt_tokens):
    """The golden file's tensors. sequences: prompt and generated tokens."""
    parts, begin = [], 0
    for number, (ids, prompt) in enumerate(zip(sequences, prompt_tokens)):
        hidden = model.hidden(ids, domain)
        logits = model.head(hidden)
        positions = [p for p in range(len(ids)) if p % HIDDEN_EVERY == HIDDEN_EVERY - 1 or p == prompt - 1]
        part = {"ids": torch.tensor(ids, dtype=torch.int32)} | per_position(logits)
        part["hidden_rows"] = torch.tensor(positions, dtype=torch.int32) + begin
        part["hidden"] = hidden[positions]
        if number < FULL_LOGITS_PROMPTS:
            part["logits_rows"] = torch.tensor([prompt - 1], dtype=torch.int32) + begin
            part["logits"] = logits[prompt - 1:prompt]
        parts.append(part)
        begin += len(ids)
    tensors = {name: torch.cat([part[name] for part in parts if name in part]) for name in parts[0]}
    return {"prompt_tokens": torch.tensor(prompt_tokens, dtype=torch.int32)} | tensors


def near_ties(tensors):
    """How many of the generated tokens an engine that keeps the bound of 1e-4 may choose otherwise."""
    begin, ties = 0, 0
    for prompt in tensors["prompt_tokens"].tolist():
        steps = slice(begin + prompt - 1, begin + prompt - 1 + GENERATED_TOKENS)
        ties += int((tensors["margin"][steps] <= 2e-4 * tensors["max_abs_logit"][steps]).sum())
        begin += prompt + GENERATED_TOKENS
    return ties


def split_sequences(tensors):
    lengths = [prompt + GENERATED_TOKENS for prompt in tensors["prompt_tokens"].tolist()]
    return [ids.tolist() for ids in tensors["ids"].split(lengths)]


def write(model):
    for domain in model.domains:
        prompts = prompts_of(domain)
        sequences = [model.greedy(prompt, domain, GENERATED_TOKENS) for prompt in prompts]
        tensors = golden_of(model, domain, sequences, [len(prompt) for prompt in prompts])
        path = GOLDEN / f"{domain}.safetensors"
        safetensors_file.write(path, tensors)
        print(f"{domain}: {len(tensors['ids'])} positions, {len(tensors['hidden_rows'])} with hidden states, "
              f"{near_ties(tensors)} near ties, {path.stat().st_size} bytes", flush=True)


def check(model):
    comparison = Comparison()
    for domain in model.domains:
        golden = safetensors_file.read(GOLDEN / f"{domain}.safetensors")
        sequences, prompt_tokens = split_sequences(golden), golden["prompt_tokens"].tolist()
        prompts = [ids[:prompt] for ids, prompt in zip(sequences, prompt_tokens)]
        comparison.equal(f"{domain}: prompts", prompts, prompts_of(domain))
        again = golden_of(model, domain, sequences, prompt_tokens)
        for name in ("hidden", "logits", "top_logit", "margin", "logsumexp", "max_abs_logit"):
            comparison.close(f"{domain}: {name}", again[name], golden[name])
        comparison.equal(f"{domain}: rows", [again["hidden_rows"].tolist(), again["logits_rows"].tolist()],
                         [golden["hidden_rows"].tolist(), golden["logits_rows"].tolist()])
        sure = golden["margin"] > 1e-4 * golden["max_abs_logit"]
        comparison.equal(f"{domain}: argmax", again["argmax"][sure].tolist(), golden["argmax"][sure].tolist())
        for ids, prompt, chosen in zip(sequences, prompt_tokens, again["argmax"].split([len(ids) for ids in sequences])):
            comparison.equal(f"{domain}: greedy tokens", ids[prompt:], chosen[prompt - 1:-1].tolist())
    return comparison


def say_bf16(model):
    rounded = Reference(DEMO, activation_dtype=torch.bfloat16)
    for domain in model.domains:
        divergences, changed, sure = [], 0, 0
        for ids in split_sequences(safetensors_file.read(GOLDEN / f"{domain}.safetensors")):
            expected, got = model.logits(ids, domain), rounded.logits(ids, domain)
            p, q = expected.double().log_softmax(-1), got.double().log_softmax(-1)
            divergences.append((p.exp() * (p - q)).sum(-1))
            is_sure = per_position(expected)["margin"] > 0.05
            changed += int((expected.argmax(-1) != got.argmax(-1))[is_sure].sum())
            sure += int(is_sure.sum())
        divergence = torch.cat(divergences)
        print(f"{domain}: KL mean {divergence.mean():.2e}, max {divergence.max():.2e}; "
              f"argmax changed at {changed} of {sure} positions whose margin exceeds 0.05", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    model = Reference(DEMO)
    if arguments.write:
        write(model)
    elif arguments.bf16:
        say_bf16(model)
    else:
        sys.exit(check(model).report())


if __name__ == "__main__":
    main()
