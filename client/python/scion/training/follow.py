"""The loss of a model that is to follow another one of the same vocabulary: KL divergence of what both predict, from
what their heads get.

The head is frozen, and so the gradient of what goes into it is made along with the loss, some rows at a time: no
[tokens, vocab_size] of a batch is ever in memory.
"""

from typing import Any

import torch
import torch.nn.functional as F

ROWS = 256  # predictions at a time
NO_TOKEN = -1


def following_tokens(ids: torch.Tensor) -> torch.Tensor:
    """ids [windows, tokens] -> the same shape: the token after each, NO_TOKEN after a window's last."""
    return F.pad(ids[:, 1:], (0, 1), value=NO_TOKEN)


def _rows(
    hidden: torch.Tensor,
    head: torch.Tensor,
    target_hidden: torch.Tensor,
    target_head: torch.Tensor,
    following: torch.Tensor,
    text_share: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses [rows] fp32, and their gradient with respect to the logits [rows, vocab_size] fp32."""
    given = torch.log_softmax((hidden @ head.T).float(), -1)
    target = torch.log_softmax((target_hidden @ target_head.T).float(), -1)
    mass = target.exp()
    losses = (1 - text_share) * (mass * target.sub_(given)).sum(-1)
    if text_share == 0:
        return losses, given.exp_().sub_(mass)
    counts = (following != NO_TOKEN).float()
    token = following.clamp(min=0)[:, None]
    losses -= text_share * counts * given.gather(-1, token)[:, 0]
    gradient = given.exp_() * (1 - text_share + text_share * counts[:, None]) - (1 - text_share) * mass
    gradient.scatter_add_(-1, token, -text_share * counts[:, None])
    return losses, gradient


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        target_hidden: torch.Tensor,
        target_head: torch.Tensor,
        following: torch.Tensor,
        text_share: float,
    ) -> torch.Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for begin in range(0, len(hidden), ROWS):
            rows = slice(begin, begin + ROWS)
            losses[rows], by_logits = _rows(
                hidden[rows], head, target_hidden[rows], target_head, following[rows], text_share
            )
            gradient[rows] = by_logits.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0][:, None].to(gradient.dtype), None, None, None, None, None)


def losses_to(
    hidden: torch.Tensor,
    head: torch.Tensor,
    target_hidden: torch.Tensor,
    target_head: torch.Tensor,
    ids: torch.Tensor,
    text_share: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """[windows, tokens] fp32, nats: of each prediction (1 - text_share) times its KL divergence from the target, plus
    text_share times the loss on the token that follows, if one does.

    hidden, target_hidden [windows, tokens, their size]: what the heads [vocab_size, their size] get. Only `hidden` has
    a gradient. ids [windows, tokens], on their device. dtype: of the products.
    """
    losses: torch.Tensor = _Loss.apply(
        hidden.flatten(0, 1).to(dtype),
        head.detach().to(dtype),
        target_hidden.detach().flatten(0, 1).to(dtype),
        target_head.detach().to(dtype),
        following_tokens(ids).flatten(),
        text_share,
    )
    return losses.view(ids.shape)
