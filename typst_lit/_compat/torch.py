"""Private API of torch, as read in 2.13.0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependentOutputException
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves

# FakeTensorMode runs operators on shapes alone; DataDependentOutputException is what it raises where a value is needed.
# TorchDispatchMode sees every operator that runs. torch documents their use, but has them in private modules only.


def ignore_in_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Keeps DistributedDataParallel from broadcasting and averaging parameters and buffers, by name.

    There is no public way to leave out frozen parameters, and sharded ones can't be broadcast.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


def loader_workers(batches: object) -> Sequence[Any]:
    """Returns the worker processes of an iterator over a DataLoader; none if it loads in this process.

    There is no public way to end a worker that hangs.
    """
    return getattr(batches, "_workers", [])


def fake_cpu_tensor(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """Returns a fake tensor that claims to be on the CPU, with the shape and dtype of one on the meta device.

    `FakeTensorMode.from_tensor` would leave it on the meta device.
    """
    return FakeTensor(mode, tensor.detach(), torch.device("cpu"))


def tensor_leaves(output: Any) -> Iterator[Tensor]:
    """Yields the tensors in what an operator returns, however it is nested."""
    return (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
