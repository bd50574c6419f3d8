"""The demo model for training: a Llama-style trunk, and experts by domain and table in its upper layers.

`domains` [sequences] is the domain of each sequence of a batch; `ids` [sequences, tokens].
"""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DOMAINS = ["zh", "en", "cpp", "python"]
INIT_STD = 0.02


@dataclasses.dataclass
class Config:
    vocab_size: int = 8192
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_sparse_layers: int = 3  # the upper ones
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    num_experts: int = 4  # per domain and sparse layer
    context_tokens: int = 256
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    route_seed: int = 20230320

    @property
    def first_sparse_layer(self):
        return self.num_hidden_layers - self.num_sparse_layers


def make_routes(config):
    """[sparse layer, token id] -> expert of the domain's group. Every expert gets as many token types; the domains share
    the tables, the layers do not."""
    routes = [np.random.RandomState(config.route_seed + layer).permutation(config.vocab_size) % config.num_experts
              for layer in range(config.num_sparse_layers)]
    return torch.tensor(np.stack(routes).astype(np.int64))


class RmsNorm(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_tables(config, tokens):
    frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    angle = torch.outer(torch.arange(tokens).float(), frequency)
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.query_size = config.num_attention_heads * config.head_dim
        self.key_value_size = config.num_key_value_heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, self.query_size + 2 * self.key_value_size, bias=False)
        self.o = nn.Linear(self.query_size, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask):
        config, (sequences, tokens, _) = self.config, x.shape
        sizes = [self.query_size, self.key_value_size, self.key_value_size]
        query, key, value = (part.view(sequences, tokens, -1, config.head_dim).transpose(1, 2)
                             for part in self.qkv(x).split(sizes, -1))
        shared_by = config.num_attention_heads // config.num_key_value_heads
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        key, value = key.repeat_interleave(shared_by, 1), value.repeat_interleave(shared_by, 1)
        score = query @ key.transpose(-1, -2) * config.head_dim ** -0.5 + mask
        output = torch.softmax(score.float(), -1).to(value.dtype) @ value
        return self.o(output.transpose(1, 2).reshape(sequences, tokens, self.query_size))


def swiglu(x, w13, w2):
    gate, up = F.linear(x, w13).chunk(2, -1)
    return F.linear(F.silu(gate) * up, w2)


def ffn_weights(config):
    """Gate and up as one matrix; down."""
    down_std = INIT_STD / math.sqrt(2 * config.num_hidden_layers)
    return (nn.Parameter(torch.randn(2 * config.intermediate_size, config.hidden_size) * INIT_STD),
            nn.Parameter(torch.randn(config.hidden_size, config.intermediate_size) * down_std))


class DenseFfn(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.w13, self.w2 = ffn_weights(config)

    def forward(self, x, experts):
        return swiglu(x, self.w13, self.w2)


class RoutedFfn(nn.Module):
    """Experts in order domain * num_experts + number. experts [sequences, tokens] says which one each token visits."""

    def __init__(self, config):
        super().__init__()
        self.count = len(DOMAINS) * config.num_experts
        w13, w2 = zip(*(ffn_weights(config) for _ in range(self.count)))
        self.w13, self.w2 = nn.ParameterList(w13), nn.ParameterList(w2)

    def forward(self, x, experts):
        shape = x.shape
        x, experts = x.reshape(-1, shape[-1]), experts.reshape(-1)
        order = torch.argsort(experts)
        counts = torch.bincount(experts, minlength=self.count).tolist()
        outputs = [swiglu(rows, self.w13[expert], self.w2[expert])
                   for expert, rows in enumerate(x[order].split(counts)) if counts[expert]]
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        return torch.cat(outputs)[inverse].view(shape)


class Block(nn.Module):

    def __init__(self, config, is_sparse):
        super().__init__()
        self.n1, self.n2 = RmsNorm(config), RmsNorm(config)
        self.attn = Attention(config)
        self.ffn = RoutedFfn(config) if is_sparse else DenseFfn(config)

    def forward(self, x, experts, cos, sin, mask):
        x = x + self.attn(self.n1(x), cos, sin, mask)
        return x + self.ffn(self.n2(x), experts)


class Model(nn.Module):
    """is_sparse: false for the dense phase of the training, in which all domains share every FFN."""

    def __init__(self, config, is_sparse):
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, is_sparse and layer >= config.first_sparse_layer)
                                    for layer in range(config.num_hidden_layers))
        self.norm = RmsNorm(config)
        self.routes = make_routes(config)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0, INIT_STD)
        for block in self.blocks:
            nn.init.normal_(block.attn.o.weight, 0, INIT_STD / math.sqrt(2 * config.num_hidden_layers))
        self.cos, self.sin = rope_tables(config, config.context_tokens)
        self.mask = torch.full((config.context_tokens, config.context_tokens), -1e9).triu(1)

    def forward(self, ids, domains):
        """Logits [sequences, tokens, vocab_size]."""
        tokens = ids.shape[1]
        cos, sin, mask = self.cos[:tokens], self.sin[:tokens], self.mask[:tokens, :tokens]
        x = self.emb(ids)
        for layer, block in enumerate(self.blocks):
            experts = None
            if isinstance(block.ffn, RoutedFfn):
                route = self.routes[layer - self.config.first_sparse_layer]
                experts = route[ids] + domains.view(-1, 1) * self.config.num_experts
            x = block(x, experts, cos, sin, mask)
        return F.linear(self.norm(x), self.emb.weight)


def dense_name(name):
    """The dense model's parameter from which a routed model's parameter starts: blocks.3.ffn.w13.7 -> blocks.3.ffn.w13."""
    return name.rsplit(".", 1)[0]


def upcycle(dense):
    """Every expert starts as a copy of its layer's dense FFN (PanGu-Sigma inherits its dense parent likewise)."""
    routed, weights = Model(dense.config, is_sparse=True), dense.state_dict()
    for name, tensor in routed.state_dict().items():
        tensor.copy_(weights[name] if name in weights else weights[dense_name(name)])
    return routed
