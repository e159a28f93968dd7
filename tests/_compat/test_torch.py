"""The private API of torch that is used: each test fails when what it uses moves."""

from __future__ import annotations

from torch.utils.data import DataLoader

from typst_lit._compat.torch import loader_workers


def test_workers_of_a_loader() -> None:
    batches = iter(DataLoader([1, 2], num_workers=1))
    workers = loader_workers(batches)
    assert len(workers) == 1 and workers[0].is_alive()
    assert not loader_workers(iter(DataLoader([1, 2])))
