"""A frozen base model sharded over devices (FSDP2): each holds a shard of every layer, and all of one while it is used.

The adapter is not sharded. So each rank trains it as in any other run: DDP averages the gradients, and optimizer,
clipping, checkpoints and the saved adapter are the same.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from typst_lit._compat.torch import ignore_in_ddp
from typst_lit.errors import UserError


def check_sharding(world_size: int, out_of_memory: str) -> None:
    """Checks that a base model can be sharded in this run.

    Raises:
        UserError: when there is one rank only, or a rank may split its batch.
    """
    if world_size == 1:
        raise UserError(
            "there is only one device.",
            setting="model.shard_base",
            hint="Use `trainer.devices=2` or more, or leave it out.",
        )
    if out_of_memory == "split":
        raise UserError(
            "all ranks run each layer together, so none can split its batch alone.",
            setting="model.shard_base",
            hint="Leave out `watchdog.out_of_memory` and `plan`.",
        )


def shard_layers(base: PreTrainedModel, device: torch.device) -> None:
    """Shards a model's layers, on the CPU until now, over all ranks, and moves the rest to the device.

    Embeddings and head are not sharded, because the loss takes the head's weight itself; they are the smaller part of
    any model that has to be sharded.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    decoder = base.get_decoder()
    trained = {parameter for parameter in base.parameters() if parameter.requires_grad}
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, ignored_params=trained)
    in_layers = {parameter for layer in decoder.layers for parameter in layer.parameters()}
    fully_shard(decoder, mesh=mesh, ignored_params=trained | {p for p in base.parameters() if p not in in_layers})
    base.to(device)  # type: ignore[arg-type]


def ignore_frozen_in_ddp(module: nn.Module) -> None:
    """Keeps DDP from broadcasting what is not trained: every rank has loaded it, and it may be sharded."""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in module.named_buffers()]
    ignore_in_ddp(module, [*frozen, *buffers])
