"""Private API of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def ignore_in_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Keeps DistributedDataParallel from broadcasting and averaging parameters and buffers, by name.

    Read in torch 2.13. There is no public way to leave out frozen parameters, and sharded ones can't be broadcast.
    """
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(names))


def loader_workers(batches: object) -> Sequence[Any]:
    """Returns the worker processes of an iterator over a DataLoader; none if it loads in this process.

    Read in torch 2.13. There is no public way to end a worker that hangs.
    """
    return getattr(batches, "_workers", [])
