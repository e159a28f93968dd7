"""A frozen base model divided among processes: each holds a share of every layer, and all of it only while it is used.

The adapter is not divided. So each process trains it as it would without this: gradients are averaged by DDP, and
optimizer, clipping, checkpoints and the saved adapter are those of any other run.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel


def shard_layers(base: PreTrainedModel, device: torch.device) -> None:
    """Divides a model's layers, on the CPU until now, among all processes, and puts the rest onto the device.

    Embeddings and head stay whole, for the loss takes the head's weight itself; they are the smaller part of any model
    that has to be divided.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    decoder = base.get_decoder()
    kept = {parameter for parameter in base.parameters() if parameter.requires_grad}
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, ignored_params=kept)
    divided = {parameter for layer in decoder.layers for parameter in layer.parameters()}
    fully_shard(decoder, mesh=mesh, ignored_params=kept | {p for p in base.parameters() if p not in divided})
    base.to(device)  # type: ignore[arg-type]


def ignore_frozen_in_ddp(module: nn.Module) -> None:
    """Has DDP leave alone what is not trained: every process has loaded it, and it may be divided."""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in module.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [*frozen, *buffers])
