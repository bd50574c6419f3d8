"""Muon for the matrices of the blocks, Adam for the embedding and the norms."""

import collections

import torch

MOMENTUM = 0.95
MATRICES_AT_ONCE = 16


def orthogonalised(matrices):
    """Newton-Schulz iteration in bf16 on a batch of matrices [count, rows, columns]."""
    x = matrices.bfloat16()
    is_tall = x.size(1) > x.size(2)
    if is_tall:
        x = x.transpose(1, 2)
    norm = x.float().flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7
    x = (x / norm.bfloat16()).contiguous()
    for _ in range(5):
        a = torch.bmm(x, x.transpose(1, 2).contiguous())
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return (x.transpose(1, 2) if is_tall else x).float()


class MuonAdam:

    def __init__(self, named_parameters, muon_rate, adam_rate, weight_decay=0.01):
        self.muon_rate, self.adam_rate, self.weight_decay = muon_rate, adam_rate, weight_decay
        self.by_shape, self.momentum, adam_parameters = collections.defaultdict(list), {}, []
        for name, parameter in named_parameters:
            if parameter.dim() == 2 and "emb" not in name:
                self.by_shape[tuple(parameter.shape)].append(parameter)
                self.momentum[parameter] = torch.zeros_like(parameter)
            else:
                adam_parameters.append(parameter)
        self.adam = torch.optim.AdamW(adam_parameters, lr=adam_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)

    @torch.no_grad()
    def step(self, scale):
        """scale: of the learning rates, by the schedule."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * scale
        self.adam.step()
        for shape, parameters in self.by_shape.items():
            parameters = [parameter for parameter in parameters if parameter.grad is not None]
            rate = self.muon_rate * scale * max(1, shape[0] / shape[1]) ** 0.5
            for begin in range(0, len(parameters), MATRICES_AT_ONCE):
                some = parameters[begin:begin + MATRICES_AT_ONCE]
                for parameter in some:
                    self.momentum[parameter].lerp_(parameter.grad, 1 - MOMENTUM)
                nesterov = [parameter.grad.lerp(self.momentum[parameter], MOMENTUM) for parameter in some]
                for parameter, update in zip(some, orthogonalised(torch.stack(nesterov))):
                    parameter.mul_(1 - rate * self.weight_decay).add_(update, alpha=-rate)

    def zero_grad(self):
        for parameter in [*self.momentum, *self.adam.param_groups[0]["params"]]:
            parameter.grad = None

    def inherit(self, other, pairs):
        """Takes over the state of another optimiser's parameters: pairs of (own, other's)."""
        for own, others in pairs:
            if others in other.momentum:
                self.momentum[own] = other.momentum[others].clone()
            elif others in other.adam.state:
                self.adam.state[own] = {name: value.clone() for name, value in other.adam.state[others].items()}
