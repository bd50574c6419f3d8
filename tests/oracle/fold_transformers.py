#!/usr/bin/env python3
"""A folded domain in Transformers, as it was written: the greedy text is Scion's.

usage: fold_transformers.py [--bin build/release/bin] [--fold DIR]

Without --fold, folds the demo's `cpp` (width 1, fitted to deploy/demo/eval/cpp.jsonl; width 4) with moe-extract. Ten
prompts of tests/golden/logits, 32 tokens each, fp32: Transformers chooses greedily; Scion's logits are computed along that
text (dump_logits, fp32 weights and cache) and must have the same largest token at every place. A prompt may part only
where Transformers' two largest logits differ by less than 0.1; there it ends.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"
PROMPTS = 10
PROMPT_TOKENS = 64
NEW_TOKENS = 32
TIE = 0.1


def prompts():
    listed = json.loads((ROOT / "tests/golden/logits/prompts.json").read_text(encoding="utf-8"))["prompts"]
    return [prompt["ids"][:PROMPT_TOKENS] for prompt in listed if prompt["domain"] == "cpp"][:PROMPTS]


@torch.no_grad()
def greedy(model, ids):
    """The text with 32 tokens more, and the logits that chose them."""
    ids, chosen_by = list(ids), []
    for _ in range(NEW_TOKENS):
        chosen_by.append(model(torch.tensor([ids])).logits[0, -1])
        ids.append(int(chosen_by[-1].argmax()))
    return ids, torch.stack(chosen_by)


def scion_logits(binaries, fold, texts):
    with tempfile.TemporaryDirectory() as folder:
        sequences, out = pathlib.Path(folder, "sequences"), pathlib.Path(folder, "out")
        sequences.write_text("".join(f"{len(text) - NEW_TOKENS - 1} {' '.join(map(str, text[:-1]))}\n" for text in texts))
        subprocess.run([binaries / "dump_logits", fold, sequences, out, "--weights", "fp32", "--kv-type", "fp32"], check=True)
        return np.fromfile(out, np.float32).reshape(len(texts), NEW_TOKENS, -1)


def check(binaries, fold):
    model = AutoModelForCausalLM.from_pretrained(fold, torch_dtype=torch.float32)
    assert type(model) is LlamaForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(fold)
    assert tokenizer.decode(tokenizer("int main()").input_ids) == "int main()"
    runs = [greedy(model, ids) for ids in prompts()]
    ours = scion_logits(binaries, fold, [text for text, _ in runs])
    same = parted = 0
    worst = 0.0
    for (text, theirs), mine in zip(runs, ours, strict=True):
        for place, (a, b) in enumerate(zip(theirs.numpy(), mine, strict=True)):
            worst = max(worst, float(np.abs(a - b).max()))
            if int(b.argmax()) != text[len(text) - NEW_TOKENS + place]:
                second, first = np.sort(a)[-2:]
                if first - second >= TIE:
                    print(f"{fold}: place {place}: Scion chooses {b.argmax()}, Transformers {a.argmax()} by {first - second}")
                    return False
                parted += 1
                break
        else:
            same += 1
    print(f"{fold.name}: {same} of {len(runs)} greedy texts of {NEW_TOKENS} tokens are the same, {parted} part at a tie; "
          f"logits differ by {worst:.1e} at most")
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--fold", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.fold is not None:
        sys.exit(0 if check(arguments.bin, arguments.fold) else 1)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for width, more in ((1, ["--calibration", DEMO / "eval" / "cpp.jsonl"]), (4, [])):
            fold = pathlib.Path(folder, f"width-{width}")
            subprocess.run([arguments.bin / "moe-extract", "densify", DEMO, "--domain", "cpp", "-o", fold, "--width",
                            str(width), *more], check=True, stdout=subprocess.DEVNULL)
            good &= check(arguments.bin, fold)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
