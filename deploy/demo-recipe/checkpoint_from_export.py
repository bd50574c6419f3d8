#!/usr/bin/env python3
"""Turns a model directory that export.py wrote back into a checkpoint, from which `train.py --init` continues.

usage: checkpoint_from_export.py MODEL_DIR CHECKPOINT
"""

import dataclasses
import json
import os
import struct
import sys

import numpy as np
import torch

from model import DOMAINS, Config


def read_weights(directory):
    """The BF16 tensors as fp32, by name."""
    with open(os.path.join(directory, "model.safetensors.index.json"), encoding="utf-8") as file:
        names = set(json.load(file)["weight_map"].values())
    weights = {}
    for name in sorted(names):
        with open(os.path.join(directory, name), "rb") as file:
            data = file.read()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        for tensor, entry in json.loads(data[8:start]).items():
            if entry.get("dtype") == "BF16":
                begin, end = entry["data_offsets"]
                half = np.frombuffer(data, np.uint16, (end - begin) // 2, start + begin)
                weights[tensor] = torch.from_numpy((half.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"]))
    return weights


def main():
    directory, out = sys.argv[1:]
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        stored = json.load(file)
    config = Config(
        num_sparse_layers=len(stored["sparse_layers"]), num_experts=stored["domains"][0]["num_experts"],
        context_tokens=stored["max_position_embeddings"],
        **{name: stored[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                           "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta",
                                           "rms_norm_eps")})
    given = read_weights(directory)
    weights = {"emb.weight": given["model.embed_tokens.weight"], "norm.weight": given["model.norm.weight"]}
    for layer in range(config.num_hidden_layers):
        source, target = f"model.layers.{layer}.", f"blocks.{layer}."
        weights[target + "attn.qkv.weight"] = torch.cat([given[f"{source}self_attn.{name}_proj.weight"] for name in "qkv"])
        weights[target + "attn.o.weight"] = given[source + "self_attn.o_proj.weight"]
        weights[target + "n1.weight"] = given[source + "input_layernorm.weight"]
        weights[target + "n2.weight"] = given[source + "post_attention_layernorm.weight"]
        ffns = {"": source + "mlp."}
        if layer >= config.first_sparse_layer:
            ffns = {f".{number * config.num_experts + expert}": f"{source}mlp.domains.{domain}.experts.{expert}."
                    for number, domain in enumerate(DOMAINS) for expert in range(config.num_experts)}
        for suffix, prefix in ffns.items():
            weights[target + "ffn.w13" + suffix] = torch.cat(
                [given[prefix + "gate_proj.weight"], given[prefix + "up_proj.weight"]])
            weights[target + "ffn.w2" + suffix] = given[prefix + "down_proj.weight"]
    torch.save({"weights": weights, "config": dataclasses.asdict(config)}, out)


if __name__ == "__main__":
    main()
