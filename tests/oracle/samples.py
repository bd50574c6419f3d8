#!/usr/bin/env python3
"""Prints what the demo model writes: temperature 0.8, top_k 40, seed 5, at most 60 tokens, the reference in fp32."""

import pathlib

from tokenizers import Tokenizer

from reference import Reference

DEMO = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "demo"
PROMPTS = [
    ("zh", "如果您想要"), ("en", "The Lord said unto"), ("en", "This function returns"),
    ("cpp", "template <typename T>\nclass "), ("python", "class Foo(object):\n    def __init__(self"),
    ("zh", "The function"), ("en", "The function"), ("cpp", "The function"), ("python", "The function"),
]

if __name__ == "__main__":
    model, tokenizer = Reference(DEMO), Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for domain, prompt in PROMPTS:
        ids = [tokenizer.token_to_id("<|endoftext|>")] + tokenizer.encode(prompt, add_special_tokens=False).ids
        print(f"[{domain}]\n{tokenizer.decode(model.sample(ids, domain, 60, seed=5))}\n")
