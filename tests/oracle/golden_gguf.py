#!/usr/bin/env python3
"""Tiny random GGUF files and Transformers' logits for them: tests/golden/gguf, whose README describes both.

usage: golden_gguf.py            recomputes the logits from the committed files and compares; exit 1 on a difference
       golden_gguf.py --write    makes files and logits anew

The files are written by the `gguf` package. The logits are those of Transformers' models with the weights as the package
reads them back out of the file, blocks widened to fp32, so that quantisation is no difference.
"""

import argparse
import pathlib
import sys

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as T
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import safetensors_file
from compare import Comparison

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "gguf"
TOKENS = 32
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "i n", "t h", "th e", "Ġ the", "e r", "a n"]
SPECIAL = "<|end|>"

COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
          "max_position_embeddings": 256, "tie_word_embeddings": False}
# Types by the end of a tensor's name in the file; others are F32.
LLAMA_TYPES = {"token_embd.weight": T.Q8_0, "output.weight": T.Q5_1, "attn_q.weight": T.Q8_0, "attn_k.weight": T.Q4_0,
               "attn_v.weight": T.F32, "attn_output.weight": T.Q5_0, "0.ffn_gate.weight": T.Q4_1,
               "1.ffn_gate.weight": T.BF16, "ffn_up.weight": T.Q4_0, "0.ffn_down.weight": T.Q4_K,
               "1.ffn_down.weight": T.Q6_K}
EXPERT_TYPES = {"token_embd.weight": T.Q8_0, "output.weight": T.Q8_0, "attn_q.weight": T.Q5_1, "attn_k.weight": T.Q8_0,
                "attn_v.weight": T.Q8_0, "attn_output.weight": T.F16, "ffn_gate_exps.weight": T.Q4_0,
                "ffn_up_exps.weight": T.Q8_0, "0.ffn_down_exps.weight": T.Q5_0, "1.ffn_down_exps.weight": T.Q4_1}
# name: (architecture in the file, Transformers' config and model, types)
MODELS = {
    "llama": ("llama", LlamaConfig(**COMMON, intermediate_size=256, rms_norm_eps=1e-5, rope_theta=500000.0),
              LlamaForCausalLM, LLAMA_TYPES),
    "llama_experts": ("llama", MixtralConfig(**COMMON, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2,
                                             rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=None),
                      MixtralForCausalLM, EXPERT_TYPES),
    "qwen3moe": ("qwen3moe", Qwen3MoeConfig(**COMMON | {"head_dim": 32, "tie_word_embeddings": True},
                                            intermediate_size=128, moe_intermediate_size=32, num_experts=8,
                                            num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1,
                                            mlp_only_layers=[], rms_norm_eps=1e-6, rope_theta=1000000.0,
                                            use_sliding_window=False),
                 Qwen3MoeForCausalLM, EXPERT_TYPES),
}
# The file's names, and Transformers' of a module's parameter, from tensors of one expert.
LAYER_NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
               "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
               "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm"}


def byte_alphabet():
    """GPT-2's characters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def vocabulary():
    return byte_alphabet() + [merge.replace(" ", "") for merge in MERGES] + [SPECIAL]


def paired(weight, heads):
    """Rows of q or k as GGUF's llama has them: the halves of a head in turns."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def unpaired(weight, heads):
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def shapes(architecture, config):
    """{the file's name: shape}, in the file's order of tensors."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    query, key_value = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    result = {"token_embd.weight": (config.vocab_size, hidden), "output_norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        result["output.weight"] = (config.vocab_size, hidden)
    for layer in range(layers):
        names = {"attn_norm": (hidden,), "attn_q": (query, hidden), "attn_k": (key_value, hidden),
                 "attn_v": (key_value, hidden), "attn_output": (hidden, query), "ffn_norm": (hidden,)}
        if architecture == "qwen3moe":
            names |= {"attn_q_norm": (config.head_dim,), "attn_k_norm": (config.head_dim,)}
        ffn = {"ffn_gate": (width, hidden), "ffn_up": (width, hidden), "ffn_down": (hidden, width)}
        if experts:
            names |= {"ffn_gate_inp": (experts, hidden)} | {n + "_exps": (experts, *s) for n, s in ffn.items()}
        else:
            names |= ffn
        result |= {f"blk.{layer}.{name}.weight": shape for name, shape in names.items()}
    return result


def random_blocks(rng, dtype, shape):
    """Rows of K blocks, which the package reads and does not write: any bytes, with scales that keep weights small."""
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), dtype=np.uint8)
    scale = np.float16(2e-4 if dtype == T.Q4_K else 5e-5).tobytes()
    places = {T.Q4_K: (0, 2), T.Q6_K: (208,)}[dtype]  # d and dmin; d
    for place in places:
        blocks[..., place:place + 2] = np.frombuffer(scale, np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write_file(name, rng):
    architecture, config, _, types = MODELS[name]
    tokens = vocabulary()
    config.vocab_size = len(tokens)
    writer = gguf.GGUFWriter(GOLDEN / f"{name}.gguf", architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope_theta(config))
    if name != "llama":
        writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    for tensor, shape in shapes(architecture, config).items():
        dtype = next((t for end, t in types.items() if tensor.endswith(end)), T.F32)
        if len(shape) == 1:
            writer.add_tensor(tensor, (1 + 0.2 * rng.standard_normal(shape)).astype(np.float32))
        elif dtype in (T.Q4_K, T.Q6_K):
            writer.add_tensor(tensor, random_blocks(rng, dtype, shape), raw_dtype=dtype)
        else:
            weight = (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
            writer.add_tensor(tensor, gguf.quants.quantize(weight, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_theta(config):
    return getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]


def weights_of(name):
    """{the file's name: fp32 weights} as the package reads them."""
    tensors = gguf.GGUFReader(GOLDEN / f"{name}.gguf").tensors
    return {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(
        [int(n) for n in reversed(t.shape)]).copy()) for t in tensors}


def model_of(name):
    architecture, config, model_class, _ = MODELS[name]
    weights = weights_of(name)
    config.vocab_size = len(weights["token_embd.weight"])
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    parameters = dict(model.named_parameters())
    used = set()

    def fill(parameter, value):
        assert parameters[parameter].shape == value.shape, (parameter, value.shape)
        parameters[parameter].data.copy_(value)
        used.add(parameter)

    fill("model.embed_tokens.weight", weights["token_embd.weight"])
    fill("model.norm.weight", weights["output_norm.weight"])
    if not config.tie_word_embeddings:
        fill("lm_head.weight", weights["output.weight"])
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        theirs, ours = f"blk.{layer}.", f"model.layers.{layer}."
        for tensor, parameter in LAYER_NAMES.items():
            if theirs + tensor + ".weight" in weights:
                value = weights[theirs + tensor + ".weight"]
                if architecture == "llama" and tensor in heads:
                    value = unpaired(value, heads[tensor])
                fill(ours + parameter + ".weight", value)
        if name == "llama":
            for projection in ("gate", "up", "down"):
                fill(f"{ours}mlp.{projection}_proj.weight", weights[f"{theirs}ffn_{projection}.weight"])
            continue
        gate, up, down = (weights[f"{theirs}ffn_{p}_exps.weight"] for p in ("gate", "up", "down"))
        fill(ours + "mlp.gate.weight", weights[theirs + "ffn_gate_inp.weight"])
        fill(ours + "mlp.experts.gate_up_proj", torch.cat([gate, up], dim=1))
        fill(ours + "mlp.experts.down_proj", down)
    assert used == set(parameters), set(parameters) - used
    return model


def logits_of(name, ids):
    with torch.no_grad():
        return model_of(name)(input_ids=torch.tensor([ids])).logits[0].float()


def write():
    GOLDEN.mkdir(exist_ok=True)
    for seed, name in enumerate(MODELS):
        rng = np.random.default_rng(seed)
        write_file(name, rng)
        ids = rng.integers(0, len(vocabulary()), TOKENS).tolist()
        safetensors_file.write(GOLDEN / f"{name}.golden.safetensors",
                               {"default.ids": torch.tensor(ids, dtype=torch.int32), "default.logits": logits_of(name, ids)})


def check():
    comparison = Comparison()
    # The permutation is one, and the inverse of the other.
    rows = torch.arange(32.0).reshape(32, 1)
    comparison.equal("pairs", paired(rows, 2).flatten().tolist()[:4], [0, 8, 1, 9])
    comparison.equal("pairs and back", unpaired(paired(rows, 2), 2).tolist(), rows.tolist())
    for name in MODELS:
        golden = safetensors_file.read(GOLDEN / f"{name}.golden.safetensors")
        comparison.close(name, logits_of(name, golden["default.ids"].tolist()), golden["default.logits"])
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
