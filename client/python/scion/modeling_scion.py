"""`ScionForCausalLM`: a Scion model in PyTorch, for Hugging Face Transformers; for training and generation.

    x = Embed[ids]                                   # [batch, tokens, hidden_size]
    per layer:  x += Attention(Norm x)
                x += FFN(Norm x)                                                       # dense layer
                x += sum over slots, in order, of weight[slot] * Expert[route[slot, id]](Norm x)   # sparse layer
    logits = Head(Norm x)

Which experts and which route table a sequence has is up to its domain. Parameters have the names of the checkpoint's
tensors, so that a Scion directory loads as it is:

    ScionForCausalLM.from_pretrained("deploy/demo").generate(**tokenizer("#include", return_tensors="pt"), domain="cpp")

This file and configuration_scion.py are copied into the directories that `moe-extract export --format hf` writes, and
so import nothing but torch and transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_scion import ScionConfig

# What Transformers passes without being asked, by version and caller. (inputs_embeds: to be refused with a reason.)
_OTHER_ARGUMENTS = {"cache_position", "inputs_embeds", "num_items_in_batch"}
_TIED = {"lm_head.weight": "model.embed_tokens.weight"}


class ScionRMSNorm(nn.Module):
    """[..., size] divided by its root mean square, in fp32, times a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class ScionMLP(nn.Module):
    """SwiGLU: a dense layer's FFN, or one expert. [..., hidden_size] to the same."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ScionExpertGroup(nn.Module):
    """The experts of one domain in one sparse layer, and the table that sends each token id to num_experts_per_tok.

    route: int32 [num_experts_per_tok, vocab_size], which expert; route_weight: fp32 [num_experts_per_tok]. A new group
    has random routes with equal shares of the vocabulary, and equal weights.
    """

    route: Tensor
    route_weight: Tensor

    def __init__(self, config: ScionConfig, num_experts: int) -> None:
        super().__init__()
        slots = config.num_experts_per_tok
        self.experts = nn.ModuleList(ScionMLP(config.hidden_size, config.moe_intermediate_size)
                                     for _ in range(num_experts))
        route = torch.stack([torch.randperm(config.vocab_size) % num_experts for _ in range(slots)])
        self.register_buffer("route", route.to(torch.int32))
        self.register_buffer("route_weight", torch.full((slots,), 1.0 / slots, dtype=torch.float32))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x [tokens, hidden_size], ids [tokens] -> [tokens, hidden_size]."""
        tokens, slots = x.shape[0], self.route.shape[0]
        expert = self.route[:, ids].flatten()  # [slots * tokens]
        # Every expert's tokens side by side: one matrix product each, whatever the number of slots.
        order = expert.argsort(stable=True)
        counts = torch.bincount(expert, minlength=len(self.experts)).tolist()
        inputs = x[order % tokens].split(counts)
        outputs = torch.cat([mlp(rows) for mlp, rows in zip(self.experts, inputs) if len(rows)])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        by_slot = outputs[place].view(slots, tokens, -1)
        weight = self.route_weight.to(x.dtype)
        total = weight[0] * by_slot[0]
        for slot in range(1, slots):
            total = total + weight[slot] * by_slot[slot]
        return total


class ScionDomains(nn.Module):
    """The expert groups of one sparse layer by the names of their domains.

    Not nn.ModuleDict, which refuses a domain that is called "keys", "type" or "to" as one of its own attributes is.
    """

    def add(self, name: str, group: ScionExpertGroup) -> None:
        self._modules[name] = group

    def remove(self, name: str) -> None:
        del self._modules[name]

    def __getitem__(self, name: str) -> ScionExpertGroup:
        group = self._modules[name]
        assert isinstance(group, ScionExpertGroup)
        return group

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class ScionSparseMLP(nn.Module):
    """A sparse layer's FFN: each sequence goes through the expert group of its domain."""

    def __init__(self, config: ScionConfig) -> None:
        super().__init__()
        self.domains = ScionDomains()
        for domain in config.domains:
            self.domains.add(domain["name"], ScionExpertGroup(config, domain["num_experts"]))

    def forward(self, x: Tensor, ids: Tensor, domains: Sequence[str]) -> Tensor:
        """x [batch, tokens, hidden_size], ids [batch, tokens], one domain per row -> as x."""
        hidden_size = x.shape[-1]
        if len(set(domains)) == 1:
            return self.domains[domains[0]](x.reshape(-1, hidden_size), ids.reshape(-1)).view_as(x)
        names = list(dict.fromkeys(domains))
        rows = [torch.tensor([i for i, d in enumerate(domains) if d == name], device=x.device) for name in names]
        outputs = [self.domains[name](x[mine].reshape(-1, hidden_size), ids[mine].reshape(-1))
                   for name, mine in zip(names, rows)]
        return torch.cat(outputs).view_as(x)[torch.cat(rows).argsort()]


class ScionAttention(nn.Module):
    """Causal attention with grouped queries and RoPE (element i of a head's first half turns with i of the second)."""

    def __init__(self, config: ScionConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.num_groups = config.num_attention_heads // config.num_key_value_heads
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None) -> Tensor:
        """rotation: cos and sin, [batch, 1, tokens, head_dim]. mask: as _visible() makes it."""
        batch, tokens, _ = x.shape

        def heads(projected: Tensor) -> Tensor:  # [batch, heads, tokens, head_dim]
            return projected.view(batch, tokens, -1, self.head_dim).transpose(1, 2)

        query, key = _rotate(heads(self.q_proj(x)), *rotation), _rotate(heads(self.k_proj(x)), *rotation)
        value = heads(self.v_proj(x))
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        if mask is None and tokens == 1:
            # The queries that share keys side by side: no copies of keys and values for each.
            shared = query.reshape(batch, -1, self.num_groups, self.head_dim)
            return self.o_proj(F.scaled_dot_product_attention(shared, key, value).reshape(batch, 1, -1))
        key, value = (t.repeat_interleave(self.num_groups, dim=1) for t in (key, value))
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask,
                                                is_causal=mask is None and tokens > 1)
        return self.o_proj(output.transpose(1, 2).reshape(batch, tokens, -1))


class ScionDecoderLayer(nn.Module):
    def __init__(self, config: ScionConfig, layer: int) -> None:
        super().__init__()
        self.is_sparse = layer in config.sparse_layers
        self.self_attn = ScionAttention(config, layer)
        self.mlp = ScionSparseMLP(config) if self.is_sparse else ScionMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = ScionRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ScionRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, ids: Tensor, domains: Sequence[str], rotation: tuple[Tensor, Tensor],
                mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        normed = self.post_attention_layernorm(x)
        return x + (self.mlp(normed, ids, domains) if self.is_sparse else self.mlp(normed))


class ScionPreTrainedModel(PreTrainedModel):
    config_class = ScionConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScionDecoderLayer"]
    _supports_sdpa = True
    # Absent in a checkpoint: equal weights. Present: fp32, whatever the others are.
    _keys_to_ignore_on_load_missing = [r"\.route_weight$"]
    _keep_in_fp32_modules_strict = ["route_weight"]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, ScionRMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, ScionExpertGroup):
            nn.init.constant_(module.route_weight, 1.0 / len(module.route_weight))

    def get_submodule(self, target: str) -> nn.Module:
        """As nn.Module's, also below a domain whose name is that of a module's method ("to", "train")."""
        module: nn.Module = self
        for part in target.split(".") if target else []:
            child = module._modules.get(part)
            if child is None:
                raise AttributeError(f"{type(module).__name__} has no submodule {part!r}")
            module = child
        return module


class ScionModel(ScionPreTrainedModel):
    """The model without its head."""

    def __init__(self, config: ScionConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ScionDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = ScionRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor,
        domain: str | Sequence[str] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids [batch, tokens]; last_hidden_state [batch, tokens, hidden_size] is what the head gets.

        The other arguments are those of ScionForCausalLM.forward().
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("a Scion model needs input_ids: they decide which experts a token visits")
        batch, tokens = input_ids.shape
        domains = self._domains(domain, batch)
        checkpointing = self.gradient_checkpointing and self.training
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None and not checkpointing:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        mask = _visible(attention_mask, batch, tokens, past, input_ids.device)
        if position_ids is None:
            position_ids = _positions(attention_mask, tokens, past, input_ids.device)

        x = self.embed_tokens(input_ids)
        rotation = _rotation(position_ids, self.config, x.dtype)
        hidden_states = [x]
        for layer in self.layers:
            arguments = (x, input_ids, domains, rotation, mask, past_key_values)
            x = self._gradient_checkpointing_func(layer.__call__, *arguments) if checkpointing else layer(*arguments)
            hidden_states.append(x)
        x = self.norm(x)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=x, past_key_values=past_key_values,
            hidden_states=(*hidden_states[:-1], x) if output_hidden_states else None)

    def _domains(self, domain: str | Sequence[str] | None, batch: int) -> list[str]:
        """One name per row of the batch; of no meaning where no layer is sparse."""
        given = [domain] * batch if domain is None or isinstance(domain, str) else list(domain)
        if len(given) != batch:
            raise ValueError(f"{len(given)} domains for a batch of {batch}")
        return [self.config.resolve_domain(name) for name in given]


class ScionForCausalLM(ScionPreTrainedModel, GenerationMixin):
    """The model with its head, which may be the embedding."""

    _tied_weights_keys = _TIED if int(transformers.__version__.split(".")[0]) >= 5 else list(_TIED)

    def __init__(self, config: ScionConfig) -> None:
        super().__init__(config)
        self.model = ScionModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, directory: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As Transformers', but ValueError where a tensor is missing, superfluous or of another shape, or where a route
        leads to an expert that there is not: such a model would say something else than the one on disk."""
        model, info = super().from_pretrained(directory, *args, output_loading_info=True, **kwargs)
        for what, names in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"]),
                            ("has, in other shapes,", info["mismatched_keys"])):
            if names:
                raise ValueError(f"{directory} {what} {len(names)} tensors: {', '.join(sorted(map(str, names))[:5])}")
        model.check_routes()
        return (model, info) if output_loading_info else model

    def check_routes(self) -> None:
        """Raises ValueError, by the tensor's name, for a route table that leads to an expert that there is not."""
        for name, module in self.named_modules():
            if isinstance(module, ScionExpertGroup):
                low, high = module.route.min().item(), module.route.max().item()
                if low < 0 or high >= len(module.experts):
                    raise ValueError(f"{name}.route leads to expert {low if low < 0 else high}; "
                                     f"there are {len(module.experts)}")

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        domain: str | Sequence[str] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, and the loss where there are labels.

        input_ids: [batch, tokens]. domain: one for all rows, or one per row; None is config.default_domain. ValueError
        for one that there is not. attention_mask: [batch, earlier + tokens], 0 where a token is padding.
        past_key_values: keys and values of earlier tokens. labels: [batch, tokens], the same ids, -100 where they don't
        count; shifted in here. logits_to_keep: logits of so many last tokens (0: all), or of those places.
        """
        # A misspelt argument, above all "domain", must not be one that nobody reads.
        unknown = {name for name, value in kwargs.items() if value is not None} - _OTHER_ARGUMENTS
        if unknown:
            raise TypeError(f"forward() has no arguments {', '.join(sorted(unknown))}")
        output = self.model(input_ids, domain, attention_mask, position_ids, past_key_values, use_cache,
                            output_hidden_states, inputs_embeds=kwargs.get("inputs_embeds"))
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, places])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size,
                                      num_items_in_batch=kwargs.get("num_items_in_batch"))
        answer = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values,
                                        hidden_states=output.hidden_states)
        return answer.to_tuple() if return_dict is False else answer

    def prepare_inputs_for_generation(self, input_ids: Tensor, domain: str | Sequence[str] | None = None,
                                      **kwargs: Any) -> dict[str, Any]:
        """As Transformers'; beams and several answers to one prompt have the prompt's domain."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        batch = input_ids.shape[0]
        if domain is not None and not isinstance(domain, str) and batch % len(domain) == 0:
            domain = [name for name in domain for _ in range(batch // len(domain))]
        return {**inputs, "domain": domain}


def _rotation(position_ids: Tensor, config: ScionConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles at position_ids [batch, tokens]: [batch, 1, tokens, head_dim]."""
    exponent = torch.arange(0, config.head_dim, 2, device=position_ids.device).float() / config.head_dim
    angle = position_ids[:, None, :, None].float() / config.rope_parameters["rope_theta"] ** exponent
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _positions(attention_mask: Tensor | None, tokens: int, past: int, device: torch.device) -> Tensor:
    """[batch or 1, tokens]: how many tokens that are no padding come before each."""
    if attention_mask is None:
        return torch.arange(past, past + tokens, device=device)[None]
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -tokens:]


def _visible(attention_mask: Tensor | None, batch: int, tokens: int, past: int, device: torch.device) -> Tensor | None:
    """bool [batch or 1, 1, tokens, past + tokens], which keys a query sees; None: all up to its own."""
    keys = past + tokens
    if attention_mask is not None:
        if attention_mask.shape != (batch, keys):
            raise ValueError(f"attention_mask {list(attention_mask.shape)}: [{batch}, {keys}] is needed "
                             "(batch, tokens with those in the cache)")
        if bool(attention_mask.all()):
            attention_mask = None
    if attention_mask is None and (past == 0 or tokens == 1):
        return None
    key, query = torch.arange(keys, device=device), torch.arange(past, keys, device=device)[:, None]
    visible = key <= query
    if attention_mask is None:
        return visible[None, None]
    # Padding sees itself, so that no softmax is over nothing.
    return ((visible & attention_mask.bool()[:, None, :]) | (key == query))[:, None]
