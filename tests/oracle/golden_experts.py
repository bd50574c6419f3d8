#!/usr/bin/env python3
"""Tiny random gate-routed models as Transformers saves them, their logits and their choices of experts:
tests/golden/models, described there.

usage: golden_experts.py            recomputes from the committed models and compares; exit 1 on a difference
       golden_experts.py --write    makes models and golden files anew
"""

import argparse
import shutil
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import safetensors_file
from compare import Comparison
from golden_models import GENERATED_TOKENS, GOLDEN, PROMPT_TOKENS, random_weight

COMMON = {"vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1}
QWEN = COMMON | {"intermediate_size": 80, "moe_intermediate_size": 32, "rms_norm_eps": 1e-6}

# name: (config, model class, type of the weights on disk, greatest size of a file)
MODELS = {
    # As Qwen3-MoE's own: normalised, all but one layer sparse. fp32, one file.
    "qwen3_moe": (Qwen3MoeConfig(**QWEN, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, mlp_only_layers=[1],
                                 tie_word_embeddings=False,
                                 rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
                  Qwen3MoeForCausalLM, torch.float32, "1GB"),
    # What else the config can say: probabilities as they are, every other layer sparse, tied. Several files.
    "qwen3_moe_step": (Qwen3MoeConfig(**QWEN | {"num_hidden_layers": 4}, num_experts=5, num_experts_per_tok=2,
                                      norm_topk_prob=False, decoder_sparse_step=2, tie_word_embeddings=True,
                                      rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
                       Qwen3MoeForCausalLM, torch.bfloat16, "60KB"),
    "mixtral": (MixtralConfig(**COMMON, intermediate_size=40, num_local_experts=4, num_experts_per_tok=2,
                              rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=None,
                              rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
                MixtralForCausalLM, torch.bfloat16, "1GB"),
}


def write_model(name, generator):
    config, model_class, dtype, shard = MODELS[name]
    model = model_class(config).to(dtype)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                # Logits, and scores of gates, far enough apart to tell the best from the next.
                size = 2 if parameter.shape[0] == config.vocab_size or "gate.weight" in parameter_name else 1
                parameter.copy_(size * random_weight(generator, *parameter.shape))
    model.save_pretrained(GOLDEN / name, max_shard_size=shard)
    for path in (GOLDEN / name).glob("*.safetensors"):
        path.chmod(0o644)


def load(name):
    return AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def run(model, ids):
    """Logits [tokens, vocab_size], and the scores of every sparse layer's gate [layers, tokens, experts]."""
    output = model(torch.tensor([ids]), use_cache=False, output_router_logits=True)
    return output.logits[0].float(), torch.stack([scores.float() for scores in output.router_logits])


def choices(model, scores):
    """The experts of every layer and token, in ascending order: I32 [layers, tokens, num_experts_per_tok]."""
    best = scores.topk(model.config.num_experts_per_tok, dim=-1).indices
    return best.sort(dim=-1).values.to(torch.int32)


def write():
    generator = torch.Generator().manual_seed(20250514)
    for name in MODELS:
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        write_model(name, generator)
        model = load(name)
        ids = torch.randint(2, model.config.vocab_size, (PROMPT_TOKENS,), generator=generator).tolist()
        for _ in range(GENERATED_TOKENS):
            ids.append(int(run(model, ids)[0][-1].argmax()))
        logits, scores = run(model, ids)
        safetensors_file.write(GOLDEN / f"{name}.golden.safetensors", {
            "default.ids": torch.tensor(ids, dtype=torch.int32), "default.logits": logits,
            "default.experts": choices(model, scores)})
        top = logits[PROMPT_TOKENS - 1:-1].topk(2, dim=-1).values
        margin = float(((top[:, 0] - top[:, 1]) / logits[PROMPT_TOKENS - 1:-1].abs().amax(-1)).min())
        k = model.config.num_experts_per_tok
        ranked = scores.sort(dim=-1, descending=True).values
        gap = float((ranked[..., k - 1] - ranked[..., k]).min())
        print(f"{name}: logits from {logits.min():.1f} to {logits.max():.1f}, least margin of a greedy token "
              f"{margin:.1e} of the greatest magnitude, least gap between the last chosen expert's score and the next {gap:.1e}")


def check():
    comparison = Comparison()
    for name in MODELS:
        golden = safetensors_file.read(GOLDEN / f"{name}.golden.safetensors")
        model = load(name)
        logits, scores = run(model, golden["default.ids"].tolist())
        comparison.close(name, logits, golden["default.logits"])
        comparison.equal(f"{name}: experts", choices(model, scores).tolist(), golden["default.experts"].tolist())
        comparison.equal(f"{name}: greedy tokens", logits.argmax(-1)[PROMPT_TOKENS - 1:-1].tolist(),
                         golden["default.ids"][PROMPT_TOKENS:].tolist())
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
