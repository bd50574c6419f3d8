"""Muon (Jordan et al. 2024) for the experts' matrices: momentum, made orthogonal by a Newton-Schulz iteration."""

import collections
from typing import Any

import torch

MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
MATRICES_AT_ONCE = 16


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """[count, rows, columns] to nearly orthogonal ones of the same shape, with singular values near 1; in bf16."""
    x = matrices.bfloat16()
    is_tall = x.size(1) > x.size(2)
    x = x.transpose(1, 2) if is_tall else x
    x = (x / (x.float().flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7).bfloat16()).contiguous()
    for _ in range(5):
        a = torch.bmm(x, x.transpose(1, 2).contiguous())
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.transpose(1, 2) if is_tall else x).float()


class Optimizer:
    """All parameters are matrices [rows, columns]; one without a gradient in a step (an expert that no token of the
    batch visits) stays as it is."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], learning_rate: float) -> None:
        self._parameters, self._rate = parameters, learning_rate
        self._momentum = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """scale: of the learning rate, by the schedule."""
        by_shape: dict[torch.Size, list[str]] = collections.defaultdict(list)
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                by_shape[parameter.shape].append(name)
        for shape, names in by_shape.items():
            rate = self._rate * scale * max(1.0, shape[0] / shape[1]) ** 0.5
            for begin in range(0, len(names), MATRICES_AT_ONCE):
                some = names[begin : begin + MATRICES_AT_ONCE]
                nesterov = []
                for name in some:
                    gradient = self._parameters[name].grad
                    assert gradient is not None
                    self._momentum[name].lerp_(gradient, 1 - MOMENTUM)
                    nesterov.append(gradient.lerp(self._momentum[name], MOMENTUM))
                for name, update in zip(some, orthogonal(torch.stack(nesterov)), strict=True):
                    self._parameters[name].mul_(1 - rate * WEIGHT_DECAY).add_(update, alpha=-rate)

    def zero_grad(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self._momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, momentum in self._momentum.items():
            momentum.copy_(state["momentum"][name])
