"""What a new domain's experts and routes are before the first step.

    scratch      random weights (config's initializer_range); routes balanced by the text alone
    DOMAIN       copies of that domain's experts
    average      the mean over all domains of the experts of the same number (neurons are not matched, which suits
                 domains that began as copies of the same FFNs)

Where parent and child have different numbers of experts: with fewer in the child, expert e is the mean of the parent's
e, e + K, e + 2K, ...; with more, expert e is a copy of the parent's e modulo its number. Routes are balanced by the new
text's own tokens; a token stays with the experts to which its parents' tables lead, as far as the balance permits.
"""

import numpy as np
import torch

from scion.routes import Route, balanced_route
from scion.training.slice_model import SliceModel
from scion.training.source import PROJECTIONS, Source, expert_name, tensor_name


def parents_of_expert(expert: int, num_experts: int, parent_experts: int) -> list[int]:
    """Which experts of a parent a child's expert comes from."""
    if num_experts >= parent_experts:
        return [expert % parent_experts]
    return list(range(expert, parent_experts, num_experts))


@torch.no_grad()
def start_experts(slice_model: SliceModel, parents: list[str], seed: int) -> None:
    """Sets the experts; parents: none for scratch."""
    source, random = slice_model.source, torch.Generator().manual_seed(seed)
    for layer, group in slice_model.groups():
        for number, expert in enumerate(group.experts):
            for projection in PROJECTIONS:
                weight = getattr(expert, projection).weight
                if not parents:
                    fresh = torch.randn(weight.shape, generator=random) * slice_model.config.initializer_range
                    weight.copy_(fresh)
                    continue
                mean = torch.zeros(weight.shape)
                for domain in parents:
                    chosen = parents_of_expert(number, len(group.experts), source.domains[domain])
                    for other in chosen:
                        stored = source.read(expert_name(layer, domain, other, projection)).float()
                        mean += stored / (len(chosen) * len(parents))
                weight.copy_(mean)
        if len(parents) == 1:
            name = tensor_name(layer, parents[0], "route_weight")
            if name in source.tensors:
                group.route_weight.copy_(source.read(name))


def preferences(source: Source, parents: list[str], layer: int, slot: int, num_experts: int) -> np.ndarray:
    """[vocab_size, num_experts]: how many parents' tables lead a token to what an expert is made of."""
    votes = np.zeros((source.config.vocab_size, num_experts), np.int32)
    for domain in parents:
        table = source.read(tensor_name(layer, domain, "route"))[slot].numpy()
        for expert in range(num_experts):
            for parent in parents_of_expert(expert, num_experts, source.domains[domain]):
                votes[:, expert] += table == parent
    return votes


@torch.no_grad()
def start_routes(slice_model: SliceModel, parents: list[str], mass: np.ndarray, seed: int) -> dict[int, list[Route]]:
    """Sets the route tables; returns them by layer, one per slot."""
    routes: dict[int, list[Route]] = {}
    source, slots = slice_model.source, slice_model.config.num_experts_per_tok
    for layer, group in slice_model.groups():
        taken = np.zeros((len(mass), len(group.experts)), bool)
        routes[layer] = []
        for slot in range(slots):
            wanted = preferences(source, parents, layer, slot, len(group.experts)) if parents else None
            route = balanced_route(mass, len(group.experts), seed, layer * slots + slot, wanted, taken)
            taken[np.arange(len(mass)), route.expert_of_token] = True
            group.route[slot].copy_(torch.from_numpy(route.expert_of_token))
            routes[layer].append(route)
    return routes
