"""A Scion directory small enough to be trained in a test, made without the code under test; and texts for it."""

import json
import pathlib
import random
import struct

import torch

VOCAB = 260  # the bytes, <|endoftext|>, three words
HIDDEN, CONTEXT, SPARSE, EXPERT = 32, 32, (1, 2), 48
WORDS = ("the", "and", "of")


def characters_of_bytes() -> list[str]:
    """GPT-2's printable character for each byte."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


def tokenizer_json() -> dict:
    vocab = {character: number for number, character in enumerate(characters_of_bytes())}
    vocab |= {"th": 256, "the": 257, "an": 258}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "added_tokens": [
            {
                "id": 259,
                "content": "<|endoftext|>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\s+|[^\s]+"}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": ["t h", "th e", "a n"],
        },
    }


def write_safetensors(path: pathlib.Path, tensors: dict[str, torch.Tensor]) -> None:
    header, parts, offset = {}, [], 0
    names = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int32: "I32"}
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def config(domains: dict[str, int], slots: int) -> dict:
    return {
        "model_type": "scion",
        "architectures": ["ScionForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "moe_intermediate_size": EXPERT,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": 259,
        "eos_token_id": 259,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "sparse_layers": list(SPARSE),
        "num_experts_per_tok": slots,
        "default_domain": next(iter(domains)),
        "domains": [{"name": name, "num_experts": count} for name, count in domains.items()],
    }


def make(directory: pathlib.Path, domains: dict[str, int], slots: int = 1, seed: int = 1) -> pathlib.Path:
    """Random weights, bf16."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).bfloat16()

    def ffn(prefix: str, size: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}gate_proj.weight": weight(size, HIDDEN),
            f"{prefix}up_proj.weight": weight(size, HIDDEN),
            f"{prefix}down_proj.weight": weight(HIDDEN, size),
        }

    trunk = {"model.embed_tokens.weight": weight(VOCAB, HIDDEN), "model.norm.weight": torch.ones(HIDDEN).bfloat16()}
    files = {f"domains/{name}.safetensors": {} for name in domains}
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        trunk |= {f"{prefix}self_attn.{p}_proj.weight": weight(16 if p in "kv" else 32, 32) for p in "qkvo"}
        trunk |= {
            f"{prefix}{norm}_layernorm.weight": torch.ones(HIDDEN).bfloat16() for norm in ("input", "post_attention")
        }
        if layer not in SPARSE:
            trunk |= ffn(f"{prefix}mlp.", 64)
            continue
        for name, count in domains.items():
            root = f"{prefix}mlp.domains.{name}."
            tensors = files[f"domains/{name}.safetensors"]
            for expert in range(count):
                tensors |= ffn(f"{root}experts.{expert}.", EXPERT)
            tensors[f"{root}route"] = torch.randint(count, (slots, VOCAB), generator=generator, dtype=torch.int32)
    files["trunk.safetensors"] = trunk
    for name, tensors in files.items():
        write_safetensors(directory / name, tensors)
    index = {tensor: name for name, tensors in files.items() for tensor in tensors}
    for name, content in (
        ("config.json", config(domains, slots)),
        ("tokenizer.json", tokenizer_json()),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("model.safetensors.index.json", {"metadata": {}, "weight_map": index}),
    ):
        (directory / name).write_text(json.dumps(content))
    return directory


def text(characters: int, seed: int = 1) -> str:
    """Words in an order that can be learnt a little, in lines."""
    source = random.Random(seed)
    words = [*WORDS, "tree", "graft", "root", "branch", "leaf"]
    out, word = [], 0
    while sum(map(len, out[-1:])) + len(out) * 5 < characters:
        word = (word * 3 + source.choice((1, 1, 1, 2))) % len(words)
        out.append(words[word] + ("\n" if source.random() < 0.1 else " "))
    return "".join(out)
