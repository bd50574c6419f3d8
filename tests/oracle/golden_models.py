#!/usr/bin/env python3
"""Tiny random models and their logits, which Transformers gives where it can: tests/golden/models, described there.

usage: golden_models.py            recomputes from the committed models and compares; exit 1 on a difference
       golden_models.py --write    makes models and logits anew
"""

import argparse
import json
import pathlib
import shutil
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import safetensors_file
from compare import Comparison
from reference import Reference

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "models"
PROMPT_TOKENS = 24
GENERATED_TOKENS = 64

COMMON = {
    "vocab_size": 283, "hidden_size": 64, "intermediate_size": 80, "moe_intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "sparse_layers": [1, 2], "num_experts_per_tok": 1}
SMALL = COMMON | {
    "vocab_size": 211, "hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 40,
    "num_attention_heads": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}

# name: (config, experts per domain, domains that have a route_weight)
SCION_MODELS = {
    "one_expert": (COMMON, {"alpha": 1, "beta": 1}, []),
    "two_slots": (SMALL | {"num_experts_per_tok": 2, "tie_word_embeddings": False}, {"alpha": 3, "beta": 3}, ["beta"]),
    "unequal": (SMALL | {"sparse_layers": [0, 2], "rope_theta": 500000.0}, {"alpha": 4, "beta": 1, "gamma": 2}, []),
}


def random_weight(generator, *shape):
    """Of a size that keeps activations near one."""
    return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).bfloat16()


def write_scion_model(directory, config, experts, weighted, generator):
    hidden, vocab, head_dim = config["hidden_size"], config["vocab_size"], config["head_dim"]
    query, key_value = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim

    def norm():
        return (1 + 0.2 * torch.randn(hidden, generator=generator)).bfloat16()

    def ffn(prefix, intermediate):
        return {prefix + "gate_proj.weight": random_weight(generator, intermediate, hidden),
                prefix + "up_proj.weight": random_weight(generator, intermediate, hidden),
                prefix + "down_proj.weight": random_weight(generator, hidden, intermediate)}

    files = {"trunk.safetensors": {}} | {f"domains/{domain}.safetensors": {} for domain in experts}
    trunk = files["trunk.safetensors"]
    # Twice the usual size: logits from about -8 to 8, so that some tokens are likely and others are not.
    trunk["model.embed_tokens.weight"] = 2 * random_weight(generator, vocab, hidden)
    if not config["tie_word_embeddings"]:
        trunk["lm_head.weight"] = 2 * random_weight(generator, vocab, hidden)
    trunk["model.norm.weight"] = norm()
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
            trunk[f"{prefix}self_attn.{name}_proj.weight"] = random_weight(generator, rows, hidden)
        trunk[prefix + "self_attn.o_proj.weight"] = random_weight(generator, hidden, query)
        trunk[prefix + "input_layernorm.weight"] = norm()
        trunk[prefix + "post_attention_layernorm.weight"] = norm()
        if layer not in config["sparse_layers"]:
            trunk.update(ffn(prefix + "mlp.", config["intermediate_size"]))
            continue
        for domain, count in experts.items():
            tensors, root = files[f"domains/{domain}.safetensors"], f"{prefix}mlp.domains.{domain}."
            for expert in range(count):
                tensors.update(ffn(f"{root}experts.{expert}.", config["moe_intermediate_size"]))
            slots = config["num_experts_per_tok"]
            tensors[root + "route"] = torch.randint(count, (slots, vocab), generator=generator, dtype=torch.int32)
            if domain in weighted:
                tensors[root + "route_weight"] = torch.rand(slots, generator=generator)

    (directory / "domains").mkdir(parents=True)
    for name, tensors in files.items():
        safetensors_file.write(directory / name, tensors)
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(directory / "config.json", {
        "model_type": "scion", "architectures": ["ScionForCausalLM"], **config, "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
        "dtype": "bfloat16", "domains": [{"name": name, "num_experts": count} for name, count in experts.items()],
        "default_domain": next(iter(experts))})
    write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_llama_model(directory, generator):
    """As Transformers saves it: untied head, other names and sizes than the Scion models."""
    config = LlamaConfig(
        vocab_size=233, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, rms_norm_eps=1e-6, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    model = LlamaForCausalLM(config).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                size = 2 if parameter.shape[0] == config.vocab_size else 1
                parameter.copy_(size * random_weight(generator, *parameter.shape))
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)


def llama_of_scion(directory, domain):
    """A model of one expert per domain as Transformers' Llama: its experts are the FFNs of those layers."""
    config = json.loads((directory / "config.json").read_text())
    tensors = safetensors_file.read(directory / "trunk.safetensors")
    tensors |= safetensors_file.read(directory / f"domains/{domain}.safetensors")
    state = {name.replace(f"mlp.domains.{domain}.experts.0.", "mlp."): tensor.float()
             for name, tensor in tensors.items() if not name.endswith(".route")}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
             "rope_parameters")
    model = LlamaForCausalLM(LlamaConfig(attn_implementation="eager", **{name: config[name] for name in names}))
    model.float().load_state_dict(state, strict=True)
    return model.eval()


def transformers_logits(model):
    @torch.no_grad()
    def logits(ids):
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


def cases_of(name):
    """{domain: ids -> logits [tokens, vocab_size]} of a model on disk."""
    directory = GOLDEN / name
    if name == "llama":
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        return {"default": transformers_logits(model)}
    reference = Reference(directory)
    if name == "one_expert":
        return {domain: transformers_logits(llama_of_scion(directory, domain)) for domain in reference.domains}
    return {domain: lambda ids, domain=domain: reference.logits(ids, domain) for domain in reference.domains}


def vocab_size_of(name):
    return json.loads((GOLDEN / name / "config.json").read_text())["vocab_size"]


def write():
    generator = torch.Generator().manual_seed(20230320)
    for name in [*SCION_MODELS, "llama"]:
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
    for name, (config, experts, weighted) in SCION_MODELS.items():
        write_scion_model(GOLDEN / name, config, experts, weighted, generator)
    write_llama_model(GOLDEN / "llama", generator)
    for name in [*SCION_MODELS, "llama"]:
        tensors = {}
        for domain, logits_of in cases_of(name).items():
            ids = torch.randint(2, vocab_size_of(name), (PROMPT_TOKENS,), generator=generator).tolist()
            for _ in range(GENERATED_TOKENS):
                ids.append(int(logits_of(ids)[-1].argmax()))
            logits = logits_of(ids)
            tensors |= {domain + ".ids": torch.tensor(ids, dtype=torch.int32), domain + ".logits": logits}
            top = logits[PROMPT_TOKENS - 1:-1].topk(2, dim=-1).values
            least = float(((top[:, 0] - top[:, 1]) / logits[PROMPT_TOKENS - 1:-1].abs().amax(-1)).min())
            print(f"{name} {domain}: logits from {logits.min():.1f} to {logits.max():.1f}, "
                  f"least margin of a greedy token {least:.1e} of the greatest magnitude")
        safetensors_file.write(GOLDEN / f"{name}.golden.safetensors", tensors)


def check():
    comparison = Comparison()
    for name in [*SCION_MODELS, "llama"]:
        golden = safetensors_file.read(GOLDEN / f"{name}.golden.safetensors")
        for domain, logits_of in cases_of(name).items():
            ids, expected = golden[domain + ".ids"].tolist(), golden[domain + ".logits"]
            got = logits_of(ids)
            comparison.close(f"{name}: {domain}", got, expected)
            comparison.equal(f"{name}: {domain}: greedy tokens", got.argmax(-1)[PROMPT_TOKENS - 1:-1].tolist(),
                             ids[PROMPT_TOKENS:])
            if name == "one_expert":
                comparison.close(f"{name}: {domain}: the reference beside Transformers",
                                 Reference(GOLDEN / name).logits(ids, domain), expected)
    return comparison


def main():
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        write()
    sys.exit(check().report())


if __name__ == "__main__":
    main()
