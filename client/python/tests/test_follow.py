"""The loss that is made in pieces, and its gradient, against PyTorch's own functions in float64."""

import pytest
import torch
import torch.nn.functional as F

from scion.training import follow

WINDOWS, TOKENS, SIZE, TARGET_SIZE, VOCAB = 3, 7, 6, 5, 11


@pytest.mark.parametrize("text_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rows", [4, 1000])
def test_the_loss_and_its_gradient_are_those_of_the_formula(
    text_share: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "ROWS", rows)
    torch.manual_seed(3)
    hidden = torch.randn(WINDOWS, TOKENS, SIZE, requires_grad=True)
    head, target_head = torch.randn(VOCAB, SIZE), torch.randn(VOCAB, TARGET_SIZE)
    target_hidden = torch.randn(WINDOWS, TOKENS, TARGET_SIZE)
    ids = torch.randint(0, VOCAB, (WINDOWS, TOKENS))
    weights = torch.rand(WINDOWS, TOKENS)
    losses = follow.losses_to(hidden, head, target_hidden, target_head, ids, text_share, torch.float32)
    (losses * weights).sum().backward()

    wide = hidden.detach().double().requires_grad_(True)
    logits = wide @ head.double().T
    target = torch.log_softmax(target_hidden.double() @ target_head.double().T, -1)
    divergence = F.kl_div(torch.log_softmax(logits, -1), target, log_target=True, reduction="none").sum(-1)
    text = torch.zeros(WINDOWS, TOKENS, dtype=torch.float64)
    text[:, :-1] = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        WINDOWS, TOKENS - 1
    )
    expected = (1 - text_share) * divergence + text_share * text
    (expected * weights).sum().backward()
    assert torch.allclose(losses.double(), expected, rtol=0, atol=1e-5)
    assert hidden.grad is not None and wide.grad is not None
    assert torch.allclose(hidden.grad.double(), wide.grad, rtol=0, atol=1e-5)
    assert float(wide.grad.abs().max()) > 1e-2


def test_whoever_follows_exactly_has_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(2, 5, SIZE, requires_grad=True)
    head = torch.randn(VOCAB, SIZE)
    losses = follow.losses_to(hidden, head, hidden, head, torch.zeros(2, 5, dtype=torch.int64), 0.0, torch.float32)
    losses.sum().backward()
    assert hidden.grad is not None
    assert float(losses.abs().max()) < 1e-6 and float(hidden.grad.abs().max()) < 1e-6


def test_products_are_of_the_dtype_that_is_asked_for() -> None:
    torch.manual_seed(4)
    hidden = torch.randn(1, 5, SIZE, requires_grad=True)
    head, other = torch.randn(VOCAB, SIZE), torch.randn(1, 5, SIZE)
    ids = torch.zeros(1, 5, dtype=torch.int64)
    narrow = follow.losses_to(hidden, head, other, head, ids, 0.0, torch.bfloat16)
    wide = follow.losses_to(hidden, head, other, head, ids, 0.0, torch.float32)
    assert narrow.dtype == wide.dtype == torch.float32
    assert 0 < float((narrow - wide).abs().max()) < 0.1
    narrow.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
