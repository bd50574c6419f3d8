#!/usr/bin/env python3
"""Writes a GGUF file of random BF16 weights, for speed measurements. Needs numpy.

usage: make_gguf.py {dense,switch,wide} OUT.gguf

dense   llama: hidden 1024, 16 layers, 16 heads, 8 KV heads, FFN 2816, vocabulary 32,000: 0.25B parameters
switch  the same with 16 experts, top-1: 2.33B parameters, 0.22B active
wide    qwen3moe: hidden 2048, 16 layers, 16 heads, 64 experts of 1024, top-8, vocabulary 50,432: 6.9B, 1.2B active

Weights are normal, cut from one pool of 32M random numbers at random places. Embeddings have standard deviation 1, all
else 0.02: so routers see input that depends on the token, and experts are visited evenly. The vocabulary is made up:
control tokens, bytes, then pieces.
"""

import dataclasses
import struct
import sys

import numpy

SEED, POOL_ELEMENTS, PIECE_ELEMENTS = 1234, 1 << 25, 1 << 22
ALIGNMENT, RMS_EPS, CONTEXT, ROPE_BASE = 32, 1e-5, 8192, 10000.0
F32, BF16 = 0, 30  # tensor types
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # metadata types
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types
ONES = "ones"


@dataclasses.dataclass(frozen=True)
class Shape:
    arch: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int  # of the dense FFN, or of an expert
    experts: int
    experts_per_token: int
    vocabulary: int


SHAPES = {"dense": Shape("llama", 1024, 16, 16, 8, 2816, 0, 0, 32000),
          "switch": Shape("llama", 1024, 16, 16, 8, 2816, 16, 1, 32000),
          "wide": Shape("qwen3moe", 2048, 16, 16, 16, 1024, 64, 8, 50432)}


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def key_value(key, type_, value):
    return string(key) + struct.pack("<I", type_) + value


def array(key, type_, count, data):
    return key_value(key, ARRAY, struct.pack("<IQ", type_, count) + data)


def uint32(key, value):
    return key_value(key, UINT32, struct.pack("<I", value))


def float32(key, value):
    return key_value(key, FLOAT32, struct.pack("<f", value))


def vocabulary(size):
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "\u2581"]
    tokens += [f"\u2581p{i}" for i in range(size - len(tokens))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    types += [NORMAL] * (size - len(types))
    return [key_value("tokenizer.ggml.model", STRING, string("llama")),
            array("tokenizer.ggml.tokens", STRING, size, b"".join(map(string, tokens))),
            array("tokenizer.ggml.scores", FLOAT32, size, numpy.arange(0, -size, -1, dtype=numpy.float32).tobytes()),
            array("tokenizer.ggml.token_type", INT32, size, numpy.array(types, numpy.int32).tobytes()),
            uint32("tokenizer.ggml.bos_token_id", 1), uint32("tokenizer.ggml.eos_token_id", 2)]


def metadata(name, s):
    head = s.hidden // s.heads
    numbers = {"context_length": CONTEXT, "embedding_length": s.hidden, "block_count": s.layers,
               "feed_forward_length": s.ffn, "vocab_size": s.vocabulary, "attention.head_count": s.heads,
               "attention.head_count_kv": s.kv_heads, "rope.dimension_count": head}
    if s.experts:
        numbers |= {"expert_count": s.experts, "expert_used_count": s.experts_per_token}
    if s.arch == "qwen3moe":
        numbers |= {"expert_feed_forward_length": s.ffn, "attention.key_length": head, "attention.value_length": head}
    return [*vocabulary(s.vocabulary),
            key_value("general.architecture", STRING, string(s.arch)),
            key_value("general.name", STRING, string(f"synthetic-{name}")),
            uint32("general.file_type", 32), uint32("general.quantization_version", 2),
            *[uint32(f"{s.arch}.{key}", value) for key, value in numbers.items()],
            float32(f"{s.arch}.attention.layer_norm_rms_epsilon", RMS_EPS),
            float32(f"{s.arch}.rope.freq_base", ROPE_BASE)]


def tensors(s):
    """(name, shape with the fastest dimension first, type, ONES or the standard deviation), in file order."""
    head, weight = s.hidden // s.heads, 0.02
    kv = head * s.kv_heads
    yield "token_embd.weight", (s.hidden, s.vocabulary), BF16, 1.0
    yield "output_norm.weight", (s.hidden,), F32, ONES
    yield "output.weight", (s.hidden, s.vocabulary), BF16, weight
    for layer in range(s.layers):
        p = f"blk.{layer}."
        yield p + "attn_norm.weight", (s.hidden,), F32, ONES
        yield p + "attn_q.weight", (s.hidden, s.hidden), BF16, weight
        yield p + "attn_k.weight", (s.hidden, kv), BF16, weight
        yield p + "attn_v.weight", (s.hidden, kv), BF16, weight
        yield p + "attn_output.weight", (s.hidden, s.hidden), BF16, weight
        yield p + "ffn_norm.weight", (s.hidden,), F32, ONES
        if s.arch == "qwen3moe":
            yield p + "attn_q_norm.weight", (head,), F32, ONES
            yield p + "attn_k_norm.weight", (head,), F32, ONES
        experts, suffix = ((s.experts,), "_exps") if s.experts else ((), "")
        if s.experts:
            yield p + "ffn_gate_inp.weight", (s.hidden, s.experts), F32, weight
        yield f"{p}ffn_gate{suffix}.weight", (s.hidden, s.ffn, *experts), BF16, weight
        yield f"{p}ffn_up{suffix}.weight", (s.hidden, s.ffn, *experts), BF16, weight
        yield f"{p}ffn_down{suffix}.weight", (s.ffn, s.hidden, *experts), BF16, weight


def elements(shape):
    return int(numpy.prod(shape, dtype=numpy.int64))


def padding(size):
    return -size % ALIGNMENT


def header(name, s):
    infos, offset, count = b"", 0, 0
    for tensor, shape, type_, _ in tensors(s):
        infos += string(tensor) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, offset)
        size = elements(shape) * (2 if type_ == BF16 else 4)
        offset += size + padding(size)
        count += 1
    entries = metadata(name, s)
    out = b"GGUF" + struct.pack("<IQQ", 3, count, len(entries)) + b"".join(entries) + infos
    return out + b"\0" * padding(len(out))


def to_bf16(values):
    return ((values.view(numpy.uint32) + 0x8000) >> 16).astype(numpy.uint16)


def write(name, path):
    s, random = SHAPES[name], numpy.random.default_rng(SEED)
    pool = random.standard_normal(POOL_ELEMENTS, dtype=numpy.float32)
    pools = {deviation: to_bf16(pool * numpy.float32(deviation)) for deviation in (1.0, 0.02)}
    with open(path, "wb") as out:
        out.write(header(name, s))
        for _, shape, type_, content in tensors(s):
            count = left = elements(shape)
            if content == ONES:
                out.write(numpy.ones(count, numpy.float32).tobytes())
            elif type_ == F32:
                out.write((random.standard_normal(count, dtype=numpy.float32) * content).tobytes())
            else:
                while left:
                    start = int(random.integers(0, POOL_ELEMENTS - 1))
                    piece = min(left, POOL_ELEMENTS - start, PIECE_ELEMENTS)
                    out.write(pools[content][start:start + piece].data)
                    left -= piece
            out.write(b"\0" * padding(count * (2 if type_ == BF16 else 4)))


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    write(sys.argv[1], sys.argv[2])


if __name__ == "__main__":
    main()
