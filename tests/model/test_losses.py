from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from typst_lit.data.encoding import IGNORE_INDEX
from typst_lit.model import losses
from typst_lit.model.losses import chunked_cross_entropy


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_equals_the_plain_form_in_value_and_gradient(monkeypatch, chunk) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", chunk)
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False).double()
    hidden = torch.randn(3, 20, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (3, 20))
    labels[torch.rand(3, 20) < 0.4] = IGNORE_INDEX
    total, count = chunked_cross_entropy(hidden, labels, head)
    total.backward()
    gradient, hidden.grad = hidden.grad.clone(), None
    plain = F.cross_entropy(
        head(hidden)[:, :-1].reshape(-1, 50).float(),
        labels[:, 1:].reshape(-1),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    plain.backward()
    assert count == (labels[:, 1:] != IGNORE_INDEX).sum()
    torch.testing.assert_close(total, plain.float())
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
def test_equals_the_plain_form_in_every_precision(monkeypatch, dtype, autocast, frozen) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", 16)
    torch.manual_seed(0)
    head = nn.Linear(32, 300, bias=False).to(dtype)
    head.weight.requires_grad_(not frozen)
    hidden = torch.randn(2, 30, 32).to(torch.float32 if autocast else dtype).requires_grad_()
    labels = torch.randint(0, 300, (2, 30))
    labels[:, :9] = IGNORE_INDEX

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, [hidden] if frozen else [hidden, head.weight]))

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        total, _ = chunked_cross_entropy(hidden, labels, head)
        logits = head(hidden)
        plain = F.cross_entropy(
            logits[:, :-1].reshape(-1, 300).float(),
            labels[:, 1:].reshape(-1),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
    rounding = 1e-5 if dtype == torch.float32 and not autocast else 2e-2
    torch.testing.assert_close(total, plain, rtol=rounding / 10, atol=1e-4)
    for actual, expected in zip(gradients(total), gradients(plain), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding)


def test_gradients_of_tokens_that_are_all_but_certain_do_not_vanish_in_fp16() -> None:
    """As under fp16's gradient scaler: the loss is multiplied, and the gradients are divided again."""
    torch.manual_seed(0)
    head = nn.Linear(64, 100, bias=False).requires_grad_(False)
    targets = torch.arange(50)[None]
    ahead = torch.cat([targets[:, 1:], targets[:, :1]], 1)
    hidden = (head.weight[ahead[0]] * 60)[None]
    head, scale = head.half(), 65536 / 4096
    exact = hidden.half().double().requires_grad_()
    plain = F.cross_entropy(
        F.linear(exact, head.weight.double())[:, :-1].reshape(-1, 100), targets[0, 1:], reduction="sum"
    )
    (plain * scale).backward()
    rows = hidden.half().requires_grad_()
    (chunked_cross_entropy(rows, targets, head)[0] * scale).backward()
    size, error = exact.grad[0, :-1].norm(dim=-1), (rows.grad - exact.grad)[0, :-1].norm(dim=-1)
    assert 0 < size.median() / scale < 2**-14  # where fp16 begins to lose digits
    assert (error / size).median() < 0.1  # 0.12 where the factor comes after the rounding


def test_logits_are_never_held_and_a_frozen_head_gets_no_gradient() -> None:
    """2,000 rows of 50,000 logits would be 400 MB; a chunk of them is 205."""
    head = nn.Linear(8, 50_000, bias=False).requires_grad_(False)
    hidden = torch.randn(1, 2001, 8, requires_grad=True)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), torch.profiler.profile(profile_memory=True) as profile:
            total, _ = chunked_cross_entropy(hidden, torch.randint(0, 50_000, (1, 2001)), head)
        assert max(event.cpu_memory_usage for event in profile.events()) <= losses.CHUNK_ROWS * 50_000 * 4 + 2**20
    assert total.requires_grad is False and head.weight.grad is None


def test_a_head_that_is_not_a_plain_linear_layer_works_too() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, 20, bias=False)
    hidden, labels = torch.randn(1, 9, 8), torch.randint(0, 20, (1, 9))
    torch.testing.assert_close(
        chunked_cross_entropy(hidden, labels, nn.Sequential(plain))[0], chunked_cross_entropy(hidden, labels, plain)[0]
    )


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    total, count = chunked_cross_entropy(hidden, torch.full((2, 5), IGNORE_INDEX), nn.Linear(8, 10))
    total.backward()
    assert total == 0 and count == 0 and not hidden.grad.any()


def test_the_first_label_is_never_predicted() -> None:
    labels = torch.tensor([[3, IGNORE_INDEX, IGNORE_INDEX]])
    assert chunked_cross_entropy(torch.randn(1, 3, 8), labels, nn.Linear(8, 10))[1] == 0


def test_the_gradient_of_a_trained_head_does_not_overflow_in_fp16() -> None:
    """A sum over the rows of a chunk, of hidden states as large as real ones: 22 of 128,000 entries would be inf."""
    torch.manual_seed(0)
    head = nn.Linear(64, 2000, bias=False).half()
    hidden = (4 * torch.randn(1, 513, 64)).half()
    labels = torch.full((1, 513), 7)  # a frequent token
    loss, _ = chunked_cross_entropy(hidden, labels, head)
    (gradient,) = torch.autograd.grad(loss / 4096, head.weight)
    assert gradient.isfinite().all()
    exact = head.weight.detach().double().requires_grad_()
    plain = F.cross_entropy(F.linear(hidden[0, :-1].double(), exact), labels[0, 1:], reduction="sum")
    (expected,) = torch.autograd.grad(plain / 4096, exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-2, atol=1e-3)
