#!/usr/bin/env python3
"""Writes a model of random bf16 weights in Scion's format, for speed measurements. Standard library only.

usage: make_model.py {dense,rre,dense-small,rre-small} OUT_DIR

dense  hidden 1024, 16 layers, 16 heads, 8 KV heads, FFN 2816, vocabulary 32,000: 0.25B parameters, a plain Llama
rre    the same with all FFNs routed by tables: 4 domains x 4 experts, top-1: 2.3B parameters, 0.25B active
*-small  the same shapes with 4 layers and a vocabulary of 8,000, for a smoke test

Weights are normal (std 0.02; the embedding 1), cut at random places from one pool of random numbers.
"""
import array
import json
import os
import random
import struct
import sys

POOL_ELEMENTS = 1 << 22


def bf16(value):
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


class Writer:
    """One safetensors file: the header first, so shapes are announced before data is written."""

    def __init__(self, path, pool, rng):
        self.path, self.pool, self.rng, self.entries = path, pool, rng, []

    def add(self, name, shape, kind):
        self.entries.append((name, shape, kind))

    def write(self):
        header, offset = {}, 0
        for name, shape, kind in self.entries:
            count = 1
            for n in shape:
                count *= n
            size = count * (4 if isinstance(kind, bytes) else 2)
            dtype = "I32" if isinstance(kind, bytes) else "BF16"
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(self.path, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name, shape, kind in self.entries:
                begin, end = header[name]["data_offsets"]
                self.write_data(f, end - begin, kind)
        return {name: os.path.basename(self.path) for name, _, _ in self.entries}

    def write_data(self, f, size, kind):
        if isinstance(kind, bytes):
            f.write(kind)
        elif kind == "one":
            f.write(struct.pack("<H", bf16(1.0)) * (size // 2))
        else:
            pool = self.pool[kind]
            while size > 0:
                at = 2 * self.rng.randrange(POOL_ELEMENTS // 2)
                piece = memoryview(pool)[at : at + size]
                f.write(piece)
                size -= len(piece)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("dense", "rre", "dense-small", "rre-small"):
        sys.exit(__doc__)
    shape, out = sys.argv[1:]
    routed, small = shape.startswith("rre"), shape.endswith("small")
    layers, vocab = (4, 8000) if small else (16, 32000)
    hidden, heads, kv_heads, head_dim, ffn = 1024, 16, 8, 64, 2816
    domains = ["alpha", "beta", "gamma", "delta"] if routed else []
    experts = 4
    os.makedirs(os.path.join(out, "domains"))
    rng = random.Random(1)
    normal = [rng.gauss(0, 1) for _ in range(1 << 16)]
    pool = {}
    for kind, std in (("weight", 0.02), ("embedding", 1.0)):
        values = array.array("H", (bf16(std * v) for v in normal))
        while len(values) < POOL_ELEMENTS:
            turned = values[len(values) // 3 :] + values[: len(values) // 3]
            values += turned
        pool[kind] = values[:POOL_ELEMENTS].tobytes()

    config = {
        "model_type": "scion" if routed else "llama",
        "architectures": ["ScionForCausalLM" if routed else "LlamaForCausalLM"],
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
    }
    if routed:
        config |= {"moe_intermediate_size": ffn, "sparse_layers": list(range(layers)), "num_experts_per_tok": 1,
                   "domains": [{"name": d, "num_experts": experts} for d in domains], "default_domain": domains[0]}
    trunk = Writer(os.path.join(out, "trunk.safetensors" if routed else "model.safetensors"), pool, rng)
    trunk.add("model.embed_tokens.weight", [vocab, hidden], "embedding")
    trunk.add("model.norm.weight", [hidden], "one")
    groups = {d: Writer(os.path.join(out, "domains", d + ".safetensors"), pool, rng) for d in domains}
    for l in range(layers):
        p = f"model.layers.{l}."
        q_rows, kv_rows = heads * head_dim, kv_heads * head_dim
        for name, rows, cols in (("q", q_rows, hidden), ("k", kv_rows, hidden), ("v", kv_rows, hidden), ("o", hidden, q_rows)):
            trunk.add(f"{p}self_attn.{name}_proj.weight", [rows, cols], "weight")
        trunk.add(p + "input_layernorm.weight", [hidden], "one")
        trunk.add(p + "post_attention_layernorm.weight", [hidden], "one")
        matrices = (("gate", ffn, hidden), ("up", ffn, hidden), ("down", hidden, ffn))
        if not routed:
            for name, rows, cols in matrices:
                trunk.add(f"{p}mlp.{name}_proj.weight", [rows, cols], "weight")
        for d, w in groups.items():
            for e in range(experts):
                for name, rows, cols in matrices:
                    w.add(f"{p}mlp.domains.{d}.experts.{e}.{name}_proj.weight", [rows, cols], "weight")
            balanced = [i % experts for i in range(vocab)]
            rng.shuffle(balanced)
            w.add(f"{p}mlp.domains.{d}.route", [1, vocab], array.array("i", balanced).tobytes())
    weight_map = trunk.write()
    for d, w in groups.items():
        weight_map |= {name: "domains/" + file for name, file in w.write().items()}
    if routed:
        with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
            json.dump({"metadata": {}, "weight_map": weight_map}, f)
    else:
        os.rmdir(os.path.join(out, "domains"))
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f, indent=1)


if __name__ == "__main__":
    main()
