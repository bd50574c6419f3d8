"""`ScionConfig`: the `config.json` of a Scion model, for Hugging Face Transformers.

This file and modeling_scion.py are copied into the directories that `moe-extract export --format hf` writes, and so
import nothing but torch and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

_DOMAIN_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class ScionConfig(PretrainedConfig):
    """A Llama trunk, and sparse layers whose FFN is one group of experts per domain.

    The keys are those of a Scion `config.json`. Raises ValueError for what the model class cannot compute, by the name
    of the key: other activations than "silu", scaled RoPE, quantised weights.

    sparse_layers: which layers have experts. domains: `[{"name": "zh", "num_experts": 4}, ...]`, which may differ in
    their number of experts. num_experts_per_tok: rows of every route table. default_domain: the domain of a call that
    names none; absent, the first one.
    """

    model_type = "scion"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 1024,
        intermediate_size: int = 2816,
        moe_intermediate_size: int | None = None,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 16,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-5,
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rope_theta: float | None = None,
        rope_parameters: Mapping[str, Any] | None = None,
        sparse_layers: Sequence[int] = (),
        num_experts_per_tok: int = 1,
        domains: Sequence[Mapping[str, Any]] = (),
        default_domain: str | None = None,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        if "quantization_config" in kwargs:
            kind = kwargs["quantization_config"].get("type", "unknown")
            raise ValueError(f"this Scion model is quantised ({kind}); the model class reads float weights only: "
                             "quantise after training, with moe-extract quantize")
        if hidden_act != "silu":
            raise ValueError(f"hidden_act {hidden_act!r}: only 'silu'")
        rope = dict(rope_parameters or {})
        if rope.setdefault("rope_type", "default") != "default":
            raise ValueError(f"rope_type {rope['rope_type']!r}: only 'default'")
        rope.setdefault("rope_theta", 10000.0 if rope_theta is None else rope_theta)

        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.moe_intermediate_size = intermediate_size if moe_intermediate_size is None else moe_intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.hidden_act = hidden_act
        self.rms_norm_eps = rms_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rope_theta = rope["rope_theta"]
        self.rope_parameters = rope
        self.sparse_layers = list(sparse_layers)
        self.num_experts_per_tok = num_experts_per_tok
        self.domains = [{"name": str(d["name"]), "num_experts": int(d["num_experts"])} for d in domains]
        self.default_domain = default_domain
        self.use_cache = use_cache
        self._check()
        if default_domain is None and self.domains:
            self.default_domain = self.domains[0]["name"]
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, pad_token_id=pad_token_id,
                         tie_word_embeddings=tie_word_embeddings, **kwargs)

    def _check(self) -> None:
        names = self.domain_names
        for name in names:
            if not _DOMAIN_NAME.fullmatch(name):
                raise ValueError(f"domain name {name!r}: it must match {_DOMAIN_NAME.pattern}")
        if len(set(names)) != len(names):
            raise ValueError(f"'domains' names one twice: {', '.join(names)}")
        for layer in self.sparse_layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(f"sparse layer {layer}: the model has {self.num_hidden_layers} layers")
        if self.sparse_layers and not names:
            raise ValueError("'sparse_layers' without 'domains'")
        if self.default_domain is not None:
            self.resolve_domain(self.default_domain)

    @property
    def domain_names(self) -> list[str]:
        return [domain["name"] for domain in self.domains]

    def resolve_domain(self, domain: str | None) -> str | None:
        """The domain that is meant: the default one for None, which is None where there are no domains.

        Raises ValueError, with the names that there are, for any other.
        """
        if domain is None:
            return self.default_domain
        if domain not in self.domain_names:
            raise ValueError(f"no domain {domain!r}; there are: {', '.join(self.domain_names)}")
        return domain
