"""What turns a loaded model into one that is trained. `fit` and the memory planner both use it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel, PeftType
from transformers import PretrainedConfig, PreTrainedModel

from typst_lit.errors import UserError
from typst_lit.model.activation_checkpointing import ActivationCheckpointing, enable_activation_checkpointing
from typst_lit.model.adapters import base_model
from typst_lit.model.attention import has_no_cross_contamination, use_packed_attention
from typst_lit.model.backbones import keep_differentiable
from typst_lit.model.kernels import fuse_lora_forward, use_liger
from typst_lit.model.memory import trim_freed_memory
from typst_lit.model.optimizers import OptimizerSetting


@dataclass(frozen=True)
class TrainingSpec:
    """What is trained, for predicting what it takes without loading it.

    Attributes:
        config: the base model's.
        adapter: its adapter; None to train all weights.
        use_4bit: whether the linear layers are in 4 bits.
        dtype: of the frozen weights and of mixed precision.
        optimizer: by name or by class, as `TypstModule` takes it.
        liger: whether Liger's kernels are used.
    """

    config: PretrainedConfig
    adapter: PeftConfig | None
    use_4bit: bool = True
    dtype: torch.dtype = torch.bfloat16
    optimizer: OptimizerSetting = "adamw"
    liger: bool = False


def prepare_for_training(
    model: PreTrainedModel | PeftModel,
    device: torch.device,
    activation_checkpointing: ActivationCheckpointing,
    packing: bool = False,
    liger: bool = False,
    compile: bool = False,
) -> None:
    """Prepares a model, with its adapter, for training. The order matters.

    Args:
        model: the base model, or the PEFT model around it.
        device: where it is trained.
        activation_checkpointing: what the backward pass recomputes.
        packing: whether several documents share a row.
        liger: whether to use Liger's kernels.
        compile: whether to compile the layers.

    Raises:
        UserError: when the model can't be trained with these settings.
    """
    base = base_model(model)
    layers = base.get_decoder().layers
    if device.type == "cpu":
        trim_freed_memory(layers)
    keep_differentiable(model)
    # The forward pass is completed before anything wraps it.
    use_packed_attention(base)
    fuse_lora_forward(model)
    if liger:
        use_liger(base)
    if packing:
        check_packing(model)  # runs the model, so it comes before what would compile it
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT leaves modules_to_save and the like in 16 bits
            parameter.data = parameter.data.float()
    if activation_checkpointing != "none":
        check_activation_checkpointing(model)
        enable_activation_checkpointing(base, activation_checkpointing)
    if compile:  # last: what is compiled is the final forward pass; checkpointing recomputes it as one piece
        for layer in layers:
            layer.compile(dynamic=True)


def check_activation_checkpointing(model: PreTrainedModel | PeftModel) -> None:
    """Checks that a model's adapter takes part where activations are recomputed.

    Raises:
        UserError: when it would be ignored.
    """
    if isinstance(model, PeftModel) and model.active_peft_config.peft_type == PeftType.PREFIX_TUNING:
        raise UserError(
            "prefix tuning puts its weights into the KV cache, which gradient checkpointing switches off.",
            setting="model.adapter",
            hint="Use `model.gradient_checkpointing=false`, or LoRA.",
        )


def check_positions(config: PretrainedConfig, base_model: str, max_tokens: int) -> None:
    """Checks that the longest sample fits into the positions that a base model supports.

    Raises:
        UserError: when it does not.
    """
    max_positions = getattr(config, "max_position_embeddings", None)
    if max_positions and max_tokens > max_positions:
        raise UserError(
            f"the longest sample has {max_tokens} tokens, but {base_model} supports sequences of up to "
            f"{max_positions} tokens (max_position_embeddings).",
            setting="data.max_length",
            hint=f"Use `data.max_length={max_positions}` (longer samples are dropped and listed), or another model.",
        )


def check_packing(model: PreTrainedModel | PeftModel) -> None:
    """Checks that documents that share a row don't see each other.

    Raises:
        UserError: when they would.
    """
    problem = ""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        problem = f"{model.active_peft_config.peft_type.value} supports one document per row only."
    elif not has_no_cross_contamination(base_model(model)):
        problem = f"the documents of a row would see each other in a {type(base_model(model)).__name__}."
    if problem:
        raise UserError(problem, setting="data.packing", hint="Use `data.packing=false`.")
