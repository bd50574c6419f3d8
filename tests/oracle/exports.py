#!/usr/bin/env python3
"""What moe-extract export writes, in the hands of others: the `gguf` package reads its GGUF files, Transformers its
directories.

usage: exports.py [--moe-extract PROGRAM]        default: build/release/bin/moe-extract; exit 1 on a difference

- tests/golden/gguf, whose files the package wrote: exported as GGUF, every key and every tensor is as the package's own;
  exported as Hugging Face directories, Transformers gives the golden logits, and its tokenizer the ids of the merges.
- tests/golden/models, which Transformers wrote: exported as GGUF, the package finds every weight, q and k in pairs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import golden_gguf
import safetensors_file
from compare import Comparison

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
# The package's file and ours may order what belongs to the file itself as they like.
OF_THE_FILE = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.type", "general.name", "general.file_type",
               "general.quantization_version"}


def fields_of(path):
    reader = gguf.GGUFReader(path)
    return ({name: field.contents() for name, field in reader.fields.items()},
            {t.name: (t.tensor_type, [int(n) for n in t.shape], t.data.tobytes()) for t in reader.tensors})


def check_copy(comparison, name, export):
    """The package's own file, through the export, as the package reads both."""
    (theirs, their_tensors), (ours, our_tensors) = fields_of(GOLDEN / "gguf" / f"{name}.gguf"), fields_of(export)
    comparison.equal(f"{name}: version", ours["GGUF.version"], 3)
    architecture = theirs["general.architecture"]
    for key in sorted(theirs.keys() | ours.keys() - OF_THE_FILE):
        # What the package's file leaves to be guessed.
        if key in OF_THE_FILE or key not in theirs and key in (f"{architecture}.vocab_size",
                                                              "tokenizer.ggml.add_eos_token"):
            continue
        # A qwen3moe has no dense layer, whose width this would be.
        if architecture == "qwen3moe" and key == "qwen3moe.feed_forward_length":
            continue
        comparison.equal(f"{name}: {key}", ours.get(key), theirs.get(key))
    comparison.equal(f"{name}: names", our_tensors.keys(), their_tensors.keys())
    for tensor in their_tensors:
        comparison.equal(f"{name}: {tensor}", our_tensors.get(tensor), their_tensors[tensor])


def check_directory(comparison, name, directory):
    """In Transformers, without any code of ours."""
    golden = safetensors_file.read(GOLDEN / "gguf" / f"{name}.golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(input_ids=golden["default.ids"].long()[None]).logits[0].float()
    comparison.close(f"{name} in Transformers", logits, golden["default.logits"])
    tokenizer = AutoTokenizer.from_pretrained(directory)
    vocabulary = golden_gguf.vocabulary()
    expected = [vocabulary.index(token) for token in ("hello", "Ġworld", golden_gguf.SPECIAL)]
    comparison.equal(f"{name}: 'hello world'",
                     tokenizer.encode("hello world" + golden_gguf.SPECIAL, add_special_tokens=False), expected)
    comparison.equal(f"{name}: back", tokenizer.decode(expected[:2]), "hello world")
    comparison.equal(f"{name}: EOS", tokenizer.eos_token, golden_gguf.SPECIAL)


# The file's name of a tensor, behind "blk.{l}." or alone, for each of Transformers'.
LAYER = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in golden_gguf.LAYER_NAMES.items()}
LAYER |= {f"mlp.{p}_proj.weight": f"ffn_{p}.weight" for p in ("gate", "up", "down")}
LAYER |= {"block_sparse_moe.gate.weight": "ffn_gate_inp.weight"}
TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
       "lm_head.weight": "output.weight"}
MIXTRAL = {"w1": "gate", "w3": "up", "w2": "down"}


def expected_tensors(name):
    """{the file's name: fp32 weights} of a directory that Transformers wrote."""
    config = json.loads((GOLDEN / "models" / name / "config.json").read_text())
    heads = {"attn_q.weight": config["num_attention_heads"], "attn_k.weight": config["num_key_value_heads"]}
    expected, experts = {}, {}
    for tensor, weight in safetensors_file.read(GOLDEN / "models" / name / "model.safetensors").items():
        value = weight.float().numpy()
        if tensor in TOP:
            expected[TOP[tensor]] = value
            continue
        _, _, layer, rest = tensor.split(".", 3)
        if ".experts." in rest:
            _, _, expert, matrix, _ = rest.split(".")
            experts.setdefault(f"blk.{layer}.ffn_{MIXTRAL[matrix]}_exps.weight", {})[int(expert)] = value
            continue
        short = LAYER[rest]
        expected[f"blk.{layer}.{short}"] = golden_gguf.paired(value, heads[short]) if short in heads else value
    return expected | {tensor: np.stack([parts[e] for e in range(len(parts))]) for tensor, parts in experts.items()}


def check_weights(comparison, name, export):
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(
        [int(n) for n in reversed(t.shape)]) for t in gguf.GGUFReader(export).tensors}
    expected = expected_tensors(name)
    comparison.equal(f"{name}: names", tensors.keys(), expected.keys())
    for tensor, value in expected.items():
        comparison.equal(f"{name}: {tensor}", tensors[tensor].tolist() if tensor in tensors else None, value.tolist())


def main():
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser()
    parser.add_argument("--moe-extract", type=pathlib.Path, default=ROOT / "build/release/bin/moe-extract")
    program = parser.parse_args().moe_extract
    comparison = Comparison()
    with tempfile.TemporaryDirectory(prefix="scion_exports_") as work:
        def export(source, format_):
            out = pathlib.Path(work) / f"{len(list(pathlib.Path(work).iterdir()))}"
            subprocess.run([program, "export", source, "--format", format_, "-o", out], check=True,
                           stdout=subprocess.DEVNULL)
            return out

        for name in golden_gguf.MODELS:
            source = GOLDEN / "gguf" / f"{name}.gguf"
            check_copy(comparison, name, export(source, "gguf"))
            check_directory(comparison, name, export(source, "hf"))
        for name in ("llama", "mixtral"):
            check_weights(comparison, name, export(GOLDEN / "models" / name, "gguf"))
    sys.exit(comparison.report())


if __name__ == "__main__":
    main()
