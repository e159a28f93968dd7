"""The training loss: cross-entropy summed over labelled tokens, from hidden states and the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from typst_lit.data.encoding import IGNORED

CHUNK_ROWS = 1024


def summed_cross_entropy(hidden: Tensor, labels: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns the loss of predicting each next labelled token, summed, and how many such tokens there are.

    Rows without a label never reach the head, and the rest pass it in chunks that are recomputed in the backward
    pass, so that no more than ``CHUNK_ROWS`` rows of logits exist at a time.

    Args:
        hidden: (B, T, D) last hidden states.
        labels: (B, T) ids, or `IGNORED`; the label at t + 1 is predicted from the hidden state at t.
        head: the module that turns hidden states into logits (.., V).

    Returns:
        Scalar fp32 sum, differentiable in ``hidden``, and the count as an integer scalar.
    """
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    rows = hidden[:, :-1][labelled]
    targets = targets[labelled]
    total = rows.sum() * 0.0 if not len(rows) else rows.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(rows.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True):
        total = total + checkpoint(_chunk_loss, part, wanted, head, use_reentrant=False)
    return total.float(), labelled.sum()


def _chunk_loss(rows: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    return F.cross_entropy(head(rows).float(), targets, reduction="sum")
