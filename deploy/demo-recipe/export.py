#!/usr/bin/env python3
"""Writes a checkpoint of train.py as a Scion model directory: trunk, one file per domain, and the JSON files.

usage: export.py CHECKPOINT TOKENIZER_JSON OUT_DIR

Weights are BF16, routes I32 [1, vocab_size]. scion.lock.json is written afterwards, by `moe-extract lock OUT_DIR`.
"""

import json
import os
import shutil
import struct
import sys

import torch

from model import DOMAINS, Config, Model, RoutedFfn

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"


def write_safetensors(path, tensors):
    header, parts, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        is_route = name.endswith(".route")
        tensor = tensor.detach().to(torch.int32 if is_route else torch.bfloat16).contiguous()
        data = tensor.view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": "I32" if is_route else "BF16", "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def ffn_tensors(prefix, w13, w2):
    gate, up = w13.chunk(2)
    return {prefix + "gate_proj.weight": gate, prefix + "up_proj.weight": up, prefix + "down_proj.weight": w2}


def tensors_of(model):
    """The trunk's tensors, and each domain's."""
    config = model.config
    trunk = {"model.embed_tokens.weight": model.emb.weight, "model.norm.weight": model.norm.weight}
    domains = {domain: {} for domain in DOMAINS}
    for layer, block in enumerate(model.blocks):
        prefix, attention = f"model.layers.{layer}.", block.attn
        query, key, value = attention.qkv.weight.split(
            [attention.query_size, attention.key_value_size, attention.key_value_size])
        trunk |= {prefix + "self_attn.q_proj.weight": query, prefix + "self_attn.k_proj.weight": key,
                  prefix + "self_attn.v_proj.weight": value, prefix + "self_attn.o_proj.weight": attention.o.weight,
                  prefix + "input_layernorm.weight": block.n1.weight,
                  prefix + "post_attention_layernorm.weight": block.n2.weight}
        if not isinstance(block.ffn, RoutedFfn):
            trunk |= ffn_tensors(prefix + "mlp.", block.ffn.w13, block.ffn.w2)
            continue
        for number, domain in enumerate(DOMAINS):
            root = f"{prefix}mlp.domains.{domain}."
            for expert in range(config.num_experts):
                index = number * config.num_experts + expert
                domains[domain] |= ffn_tensors(f"{root}experts.{expert}.", block.ffn.w13[index], block.ffn.w2[index])
            domains[domain][root + "route"] = model.routes[layer - config.first_sparse_layer][None]
    return trunk, domains


def main():
    checkpoint_path, tokenizer_path, out = sys.argv[1:]
    checkpoint = torch.load(checkpoint_path, map_location="cpu")
    config = Config(**checkpoint["config"])
    model = Model(config, is_sparse=True)
    model.load_state_dict(checkpoint["weights"])

    trunk, domains = tensors_of(model)
    files = {"trunk.safetensors": trunk} | {f"domains/{name}.safetensors": domains[name] for name in DOMAINS}
    os.makedirs(os.path.join(out, "domains"))
    for name, tensors in files.items():
        write_safetensors(os.path.join(out, name), tensors)
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    write_json(os.path.join(out, "model.safetensors.index.json"), {"metadata": {}, "weight_map": weight_map})

    with open(tokenizer_path, encoding="utf-8") as file:
        end = json.load(file)["added_tokens"][0]
    write_json(os.path.join(out, "config.json"), {
        "model_type": "scion", "architectures": ["ScionForCausalLM"], "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "moe_intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim, "hidden_act": "silu", "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.context_tokens, "tie_word_embeddings": True, "bos_token_id": end["id"],
        "eos_token_id": end["id"], "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}, "torch_dtype": "bfloat16",
        "dtype": "bfloat16", "sparse_layers": list(range(config.first_sparse_layer, config.num_hidden_layers)),
        "num_experts_per_tok": 1,
        "domains": [{"name": domain, "num_experts": config.num_experts} for domain in DOMAINS],
        "default_domain": "en"})
    write_json(os.path.join(out, "generation_config.json"), {
        "bos_token_id": end["id"], "eos_token_id": end["id"], "do_sample": True, "temperature": 0.8, "top_k": 40})
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end["content"], "eos_token": end["content"],
        "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE})
    shutil.copy(tokenizer_path, out)


if __name__ == "__main__":
    main()
