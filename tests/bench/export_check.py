#!/usr/bin/env python3
"""A model and its GGUF export, the first in Scion, the second in llama.cpp: the same tokens, the same greedy text?

usage: export_check.py --peer DIR [--bin DIR] [--work DIR] [--texts FILE.jsonl] MODEL

MODEL is anything that moe-extract exports. It is written as F32 GGUF. Then both sides tokenize the 2,300 nasty strings
of tests/golden (languages, white space, broken characters, special tokens, random Unicode), and continue ten prompts out
of FILE (default: deploy/demo/eval/en.jsonl) by 32 tokens, greedily, with fp32 weights, activations, K and V. A text may
leave the other's where llama.cpp's two highest logits differ by less than 0.1. Scion reads MODEL itself, not the export.
llama.cpp never normalises to NFC: for a model that does, its texts are normalised before.

DIR is llama.cpp's source directory with a static build in build/. Needs numpy. Exits with 1 when something differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import unicodedata

import numpy

import quality

ROOT = quality.ROOT
PROMPTS, PROMPT_TOKENS, GREEDY_TOKENS = 10, 24, 32


def framed(texts):
    return b"".join(b"%d\n%s" % (len(text), text) for text in texts)


def nasty_texts():
    golden = ROOT / "tests/golden"
    files = [json.loads((golden / name).read_text()) for name in ("tokenizer/strings.json", "gguf/random.json")]
    return [text.encode() for texts in files for text in texts]


def ids_of(program, *arguments, texts):
    result = subprocess.run([program, *arguments], check=True, capture_output=True, input=framed(texts))
    return [list(map(int, line.split())) for line in result.stdout.decode().splitlines()]


def compare_tokens(peer, export, dump_tokens, model):
    """Texts whose ids differ: [(text, Scion's ids, llama.cpp's ids)], how many there were, and whether they had to be
    normalised for llama.cpp, which never does so itself."""
    texts = nasty_texts()
    apart, joined = ids_of(dump_tokens, model, texts=["e\u0301".encode(), "\u00e9".encode()])
    ours = ids_of(dump_tokens, model, texts=texts)
    normalises = apart == joined
    given = [unicodedata.normalize("NFC", text.decode()).encode() for text in texts] if normalises else texts
    theirs = ids_of(peer.program, export, "tokenize-each", texts=given)
    if not len(ours) == len(theirs) == len(texts):
        sys.exit(f"export_check.py: {len(texts)} texts, Scion gave {len(ours)}, llama.cpp {len(theirs)}")
    return [each for each in zip(texts, ours, theirs) if each[1] != each[2]], len(texts), normalises


def prompts_from(path, dump_tokens, model):
    """The beginnings of ten texts, as ids."""
    with open(path) as lines:
        texts = [json.loads(line)["text"].encode() for line in lines]
    long_enough = [ids for ids in ids_of(dump_tokens, model, texts=texts) if len(ids) >= PROMPT_TOKENS]
    if len(long_enough) < PROMPTS:
        sys.exit(f"export_check.py: {path}: {len(long_enough)} texts of {PROMPT_TOKENS} tokens, {PROMPTS} are needed")
    return [ids[:PROMPT_TOKENS] for ids in long_enough[:PROMPTS]]


def compare_greedy(peer, export, dump_logits, model, prompts, work):
    """Per prompt "equal", "close" or "different"."""
    quality.write_sequences(work / "prompts", prompts, 0)
    output = peer.run(export, "greedy-f32", work / "prompts", GREEDY_TOKENS)
    texts = [[(int(id_), float(gap)) for id_, gap in (word.split(":") for word in line.split())]
             for line in output.splitlines()]
    # Scion's choice at every place, given llama.cpp's tokens before it: the same text, up to the first difference.
    whole = [prompt + [token for token, _ in text[:-1]] for prompt, text in zip(prompts, texts)]
    quality.write_sequences(work / "texts", whole, PROMPT_TOKENS - 1)
    subprocess.run([dump_logits, model, work / "texts", work / "scion.logits", "--weights", "fp32", "--kv-type", "fp32"],
                   check=True)
    logits = numpy.fromfile(work / "scion.logits", numpy.float32).reshape(len(prompts), GREEDY_TOKENS, -1)
    if [len(text) for text in texts] != [GREEDY_TOKENS] * len(prompts):
        sys.exit("export_check.py: llama.cpp did not give every prompt its tokens")
    return [quality.greedy_verdict(text, choices) for text, choices in zip(texts, logits.argmax(axis=2))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/bench/export")
    parser.add_argument("--texts", type=pathlib.Path, default=ROOT / "deploy/demo/eval/en.jsonl", metavar="FILE.jsonl")
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    peer = quality.Peer(args.peer, args.work)
    export = args.work / "model.gguf"
    export.unlink(missing_ok=True)
    subprocess.run([args.bin / "moe-extract", "export", args.model, "--format", "gguf", "--type", "f32", "-o", export],
                   check=True)

    dump_tokens = args.bin / "dump_tokens"
    different, count, normalised = compare_tokens(peer, export, dump_tokens, args.model)
    print(f"tokens: {count - len(different)} of {count} texts equal{', once in NFC for llama.cpp' if normalised else ''}")
    for text, ours, theirs in different[:20]:
        print(f"  {text.decode('utf-8', 'surrogatepass')!a}: Scion {ours}, llama.cpp {theirs}")
    prompts = prompts_from(args.texts, dump_tokens, args.model)
    verdicts = compare_greedy(peer, export, args.bin / "dump_logits", args.model, prompts, args.work)
    print(f"greedy, {GREEDY_TOKENS} tokens: {verdicts.count('equal')} of {len(prompts)} texts equal, "
          f"{verdicts.count('close')} left at a gap below {quality.CLOSE_LOGITS}, "
          f"{verdicts.count('different')} elsewhere")
    sys.exit(1 if different or "different" in verdicts else 0)


if __name__ == "__main__":
    main()
