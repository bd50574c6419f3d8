"""One domain of a Scion model in PyTorch, fp32: the trunk frozen, other domains not loaded."""

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from transformers import Cache

from scion.modeling_scion import ScionExpertGroup, ScionForCausalLM, ScionSparseMLP
from scion.training.errors import TrainingError
from scion.training.source import PROJECTIONS, Source, expert_name, tensor_name


class SliceModel:
    """model: only the group of `domain` is in it, with `num_experts` experts per layer, not yet set to anything."""

    def __init__(self, source: Source, domain: str, num_experts: int, device: torch.device, autocast: bool) -> None:
        config = copy.deepcopy(source.config)
        config.domains = [{"name": domain, "num_experts": num_experts}]
        config.default_domain = domain
        self.domain, self.num_experts = domain, num_experts
        self.source, self.config, self.device, self._autocast = source, config, device, autocast
        self.model = ScionForCausalLM(config)
        trunk = {name: source.read(name).float() for name in source.trunk}
        try:
            missing, unexpected = self.model.load_state_dict(trunk, strict=False)
        except RuntimeError as error:
            raise TrainingError(
                f"{source.directory}: the trunk is not what config.json asks for: {str(error).splitlines()[1].strip()}"
            ) from error
        missing = [name for name in missing if ".mlp.domains." not in name]
        self.model.tie_weights()
        if config.tie_word_embeddings:
            missing = [name for name in missing if name != "lm_head.weight"]
        if missing or unexpected:
            raise TrainingError(f"{source.directory}: the trunk lacks {missing[:5]}, has unknown {unexpected[:5]}")
        self.model.requires_grad_(False).eval().to(device)

    def groups(self) -> Iterator[tuple[int, ScionExpertGroup]]:
        """(layer, its experts of the domain)."""
        for number in self.config.sparse_layers:
            mlp = self.model.model.layers[number].mlp
            assert isinstance(mlp, ScionSparseMLP)
            yield number, mlp.domains[self.domain]

    @torch.no_grad()
    def load_domain(self, domain: str) -> None:
        """Sets the group to a domain of the source, of as many experts."""
        for layer, group in self.groups():
            for number, expert in enumerate(group.experts):
                for projection in PROJECTIONS:
                    weight = self.source.read(expert_name(layer, domain, number, projection))
                    getattr(expert, projection).weight.copy_(weight)
            group.route.copy_(self.source.read(tensor_name(layer, domain, "route")))
            weight_name = tensor_name(layer, domain, "route_weight")
            if weight_name in self.source.tensors:
                group.route_weight.copy_(self.source.read(weight_name))

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [windows, tokens] -> [windows, tokens, vocab_size] fp32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.model(ids.to(self.device), use_cache=False).logits
        return logits.float()

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [windows, tokens] -> [windows, tokens, hidden_size], what the head gets."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self.model.model(ids.to(self.device), use_cache=False).last_hidden_state

    @property
    def head(self) -> torch.Tensor:
        """[vocab_size, hidden_size] fp32."""
        return self.model.lm_head.weight

    def next_logits(self, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        """ids [windows, tokens], which follow those in the cache -> [windows, vocab_size] fp32, after the last one."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, 0].float()

    def losses(self, ids: torch.Tensor) -> torch.Tensor:
        """[windows]: nats per token, of all tokens but a window's first."""
        return next_token_losses(self.logits(ids), ids.to(self.device))


def next_token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """logits [windows, tokens, vocab_size], ids [windows, tokens] -> [windows], the mean over a window."""
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return losses.view_as(ids).sum(1) / (ids.shape[1] - 1)


@torch.no_grad()
def domain_losses(
    source: Source, batches: list[torch.Tensor], device: torch.device, autocast: bool
) -> dict[str, float]:
    """Nats per token of the windows, by domain of the source. One domain at a time is in memory."""
    losses, slice_model = {}, None
    for domain, num_experts in source.domains.items():
        if slice_model is None or slice_model.num_experts != num_experts:
            slice_model = SliceModel(source, domain, num_experts, device, autocast)
        slice_model.load_domain(domain)
        losses[domain] = float(torch.cat([slice_model.losses(ids).double() for ids in batches]).mean())
        if not math.isfinite(losses[domain]):
            raise TrainingError(f"{source.directory}: the loss of domain {domain} on the text is {losses[domain]}")
    return losses
