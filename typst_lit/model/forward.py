"""The forward pass up to the last hidden states; `losses` takes it from there."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from typst_lit.data.batching import Batch
from typst_lit.model.activation_checkpointing import ActivationCheckpointing, offload_activations
from typst_lit.model.adapters import base_model
from typst_lit.model.losses import chunked_cross_entropy


def last_hidden_states(
    model: PreTrainedModel | PeftModel, batch: Batch, activation_checkpointing: ActivationCheckpointing
) -> Tensor:
    """Returns the decoder's output (B, T, D), which the head would turn into logits.

    A hook takes it from the full forward pass. So every PEFT method takes part as in its own forward pass, and the
    head is applied to one position only.
    """
    outputs: list[Tensor] = []
    decoder: Any = base_model(model).get_decoder()
    handle = decoder.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
    packed: dict[str, Any] = {}
    if batch.packed_sequences is not None:
        packed = {"position_ids": batch.position_ids, "packed_sequences": batch.packed_sequences}
    try:
        with offload_activations(activation_checkpointing):
            model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=1, **packed)
    finally:
        handle.remove()
    return outputs[-1][:, -batch.input_ids.shape[1] :]  # prompt tuning prepends positions of its own


def summed_loss(
    model: PreTrainedModel | PeftModel, batch: Batch, activation_checkpointing: ActivationCheckpointing
) -> tuple[Tensor, Tensor]:
    """Returns the loss (scalar, fp32) summed over the batch's labeled tokens, and the number of these tokens."""
    head: Any = model.get_output_embeddings()
    hidden = last_hidden_states(model, batch, activation_checkpointing)
    return chunked_cross_entropy(hidden, batch.labels, head, batch.target_positions)
