from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from typst_lit.data.encoding import IGNORED
from typst_lit.model import losses
from typst_lit.model.losses import summed_cross_entropy


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_equals_the_plain_form_in_value_and_gradient(monkeypatch, chunk) -> None:
    monkeypatch.setattr(losses, "CHUNK_ROWS", chunk)
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False).double()
    hidden = torch.randn(3, 20, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (3, 20))
    labels[torch.rand(3, 20) < 0.4] = IGNORED
    total, count = summed_cross_entropy(hidden, labels, head)
    total.backward()
    gradient, hidden.grad = hidden.grad.clone(), None
    plain = F.cross_entropy(
        head(hidden)[:, :-1].reshape(-1, 50).float(), labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
    plain.backward()
    assert count == (labels[:, 1:] != IGNORED).sum()
    torch.testing.assert_close(total, plain.float())
    torch.testing.assert_close(gradient, hidden.grad, rtol=1e-5, atol=1e-6)


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    total, count = summed_cross_entropy(hidden, torch.full((2, 5), IGNORED), nn.Linear(8, 10))
    total.backward()
    assert total == 0 and count == 0 and not hidden.grad.any()


def test_the_first_label_is_never_predicted() -> None:
    labels = torch.tensor([[3, IGNORED, IGNORED]])
    assert summed_cross_entropy(torch.randn(1, 3, 8), labels, nn.Linear(8, 10))[1] == 0
