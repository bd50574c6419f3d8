"""The reference: a Scion model in plain PyTorch, fp32 throughout, written to be read beside the design.

It computes one sequence at a time, all of it at once, without a cache: no batching, chunking, packing or route plan
that could be wrong in the way the engine's could be. Weights are taken from the files as they are and widened to fp32.

    x = Embed[ids]
    per layer:  x += Attention(Norm x);  x += FFN(Norm x)             dense layer
                                         x += sum over slots of weight[slot] * Expert[route[slot, id]](Norm x)
    logits = Head(Norm x)
"""

import json
import pathlib

import torch
import torch.nn.functional as F

import safetensors_file


class Reference:
    """A Scion directory, loaded. activation_dtype: what matrix products' inputs are rounded to (fp32: not at all)."""

    def __init__(self, directory, activation_dtype=torch.float32):
        directory = pathlib.Path(directory)
        self.config = json.loads((directory / "config.json").read_text())
        index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
        stored = {}
        for name in sorted(set(index.values())):
            stored.update(safetensors_file.read(directory / name))
        assert stored.keys() == index.keys()
        self.weights = {name: tensor.float() if tensor.is_floating_point() else tensor.long()
                        for name, tensor in stored.items()}
        self.activation_dtype = activation_dtype
        self.vocab_size = self.config["vocab_size"]
        self.max_positions = self.config["max_position_embeddings"]
        self.sparse_layers = set(self.config["sparse_layers"])
        self.domains = {domain["name"]: domain["num_experts"] for domain in self.config["domains"]}

    def linear(self, x, name):
        """x @ W^T, W as stored [out, in]."""
        return F.linear(x.to(self.activation_dtype).float(), self.weights[name + ".weight"])

    def norm(self, x, name):
        mean_square = x.pow(2).mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(mean_square + self.config["rms_norm_eps"]) * self.weights[name + ".weight"]

    def rotate(self, x):
        """RoPE as in Hugging Face's Llama: element i of a head's first half turns with element i of the second half.

        x [heads, tokens, head_dim]; token t is at position t.
        """
        head_dim = x.shape[-1]
        theta = self.config.get("rope_parameters", {}).get("rope_theta") or self.config["rope_theta"]
        frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.outer(torch.arange(x.shape[1]).float(), frequency)
        cos, sin = angle.cos(), angle.sin()
        first, second = x[..., :head_dim // 2], x[..., head_dim // 2:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attention(self, x, layer):
        config, prefix, tokens = self.config, f"model.layers.{layer}.self_attn.", x.shape[0]
        num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        head_dim = config["head_dim"]

        def heads(name, count):  # [count, tokens, head_dim]
            return self.linear(x, prefix + name).view(tokens, count, head_dim).transpose(0, 1)

        query = self.rotate(heads("q_proj", num_heads))
        key, value = self.rotate(heads("k_proj", num_kv_heads)), heads("v_proj", num_kv_heads)
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        outputs = []
        for head in range(num_heads):
            kv_head = head // (num_heads // num_kv_heads)
            score = query[head] @ key[kv_head].T * head_dim ** -0.5
            probability = torch.softmax(score.masked_fill(future, float("-inf")), dim=-1)
            outputs.append(probability @ value[kv_head])
        return self.linear(torch.cat(outputs, dim=-1), prefix + "o_proj")

    def ffn(self, x, prefix):
        """SwiGLU."""
        gate, up = self.linear(x, prefix + "gate_proj"), self.linear(x, prefix + "up_proj")
        return self.linear(F.silu(gate) * up, prefix + "down_proj")

    def experts(self, x, ids, layer, domain):
        prefix = f"model.layers.{layer}.mlp.domains.{domain}."
        route = self.weights[prefix + "route"]
        slots = self.config["num_experts_per_tok"]
        weight = self.weights.get(prefix + "route_weight", torch.full((slots,), 1.0 / slots))
        total = torch.zeros_like(x)
        for slot in range(slots):
            output = torch.empty_like(x)
            for expert in range(self.domains[domain]):
                mine = (route[slot, ids] == expert).nonzero().flatten()
                output[mine] = self.ffn(x[mine], f"{prefix}experts.{expert}.")
            total = total + weight[slot] * output
        return total

    @torch.no_grad()
    def hidden(self, ids, domain):
        """What the head gets, [tokens, hidden_size]."""
        ids = torch.as_tensor(ids)
        assert len(ids) <= self.max_positions
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, prefix + "input_layernorm"), layer)
            normed = self.norm(x, prefix + "post_attention_layernorm")
            if layer in self.sparse_layers:
                x = x + self.experts(normed, ids, layer, domain)
            else:
                x = x + self.ffn(normed, prefix + "mlp.")
        return self.norm(x, "model.norm")

    @torch.no_grad()
    def head(self, hidden):
        """[tokens, vocab_size]."""
        return self.linear(hidden, "model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head")

    def logits(self, ids, domain):
        return self.head(self.hidden(ids, domain))

    def greedy(self, prompt, domain, tokens):
        """The prompt and so many tokens more, each the most likely one (the first of equals)."""
        ids = list(prompt)
        for _ in range(tokens):
            ids.append(int(self.head(self.hidden(ids, domain)[-1:]).argmax()))
        return ids

    def sample(self, prompt, domain, tokens, seed, temperature=0.8, top_k=40):
        generator = torch.Generator().manual_seed(seed)
        ids = list(prompt)
        for _ in range(tokens):
            value, index = (self.head(self.hidden(ids, domain)[-1:])[0] / temperature).topk(top_k)
            ids.append(int(index[torch.multinomial(torch.softmax(value, -1), 1, generator=generator)]))
            if ids[-1] == self.config["eos_token_id"]:
                break
        return ids
