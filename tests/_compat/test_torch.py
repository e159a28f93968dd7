"""The private API of torch that is used: each test fails when what it uses moves."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from typst_lit._compat.torch import (
    DataDependentOutputException,
    FakeTensorMode,
    TorchDispatchMode,
    fake_cpu_tensor,
    ignore_in_ddp,
    loader_workers,
    tensor_leaves,
)


def test_workers_of_a_loader() -> None:
    batches = iter(DataLoader([1, 2], num_workers=1))
    workers = loader_workers(batches)
    assert len(workers) == 1 and workers[0].is_alive()
    assert not loader_workers(iter(DataLoader([1, 2])))


def test_ignored_parameters_are_not_broadcast() -> None:
    from torch.nn.parallel import DistributedDataParallel

    module = nn.Linear(2, 2)
    ignore_in_ddp(module, ["bias"])
    assert callable(DistributedDataParallel._set_params_and_buffers_to_ignore_for_model)
    assert module._ddp_params_and_buffers_to_ignore == ["bias"]  # where DDP's constructor looks


def test_operators_on_fake_tensors_are_seen() -> None:
    class Recorder(TorchDispatchMode):
        shapes: ClassVar[list[tuple[int, ...]]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            self.shapes += [tuple(tensor.shape) for tensor in tensor_leaves(output)]
            return output

    mode = FakeTensorMode()
    fake = fake_cpu_tensor(mode, torch.empty(10**6, 10**6, device="meta"))
    assert fake.device == torch.device("cpu")
    with mode, Recorder() as recorder:
        product = fake @ fake[:, :7]
        fake.min(dim=1)  # two tensors in a named tuple
    assert product.shape == (10**6, 7) and product.device == torch.device("cpu")
    with pytest.raises(DataDependentOutputException), mode:
        fake.sum().item()
    assert recorder.shapes == [(10**6, 7), (10**6, 7), (10**6,), (10**6,)]
