"""PEFT adapters: attaching, checking, finding and loading them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from typst_lit._compat.peft import add_adapter, load_saved_adapter
from typst_lit.errors import UserError
from typst_lit.files import sha256
from typst_lit.model.adapter_config import read_adapter_config
from typst_lit.model.locations import CONFIG_FILE, METADATA_FILE, adapter_base, adapter_directory, damaged, read_json
from typst_lit.model.saving import CHECKSUMS

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGET_PRESETS: dict[str, list[str]] = {
    "attention": ATTENTION,
    "attention+mlp": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
}  # "all-linear" is PEFT's own: every linear layer but the head
PISSA_HINT = "PiSSA starts from weights that are not quantized: use `model.use_4bit=false`."
# A configuration may ask for more values than the file has, for what is trained but not saved. Above this it would only
# fill the memory.
MAX_WEIGHTS_PER_SAVED_WEIGHT = 100
MIN_WEIGHTS_THAT_COUNT = 100_000_000


def attach_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Freezes the model and adds new adapter weights, in fp32, to the modules that the config targets.

    Raises:
        UserError: when a target is not a module of this model, or PEFT rejects the configuration.
    """
    config = copy.deepcopy(config)  # PEFT writes into it, and the same object may be the default of another run
    config.task_type = "CAUSAL_LM"
    config.base_model_name_or_path = None  # PEFT writes that of the model, and warns of another one
    for setting in ("target_modules", "feedforward_modules", "modules_to_save"):
        targets = getattr(config, setting, None)
        if targets:
            setattr(config, setting, _resolve_targets(model, targets, setting))
    try:
        return add_adapter(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        hint = PISSA_HINT if "PiSSA" in str(error) else ""
        raise UserError(str(error), setting="model.adapter", hint=hint) from error


def _resolve_targets(model: nn.Module, targets: Any, setting: str) -> Any:
    if isinstance(targets, str):
        if targets == "all-linear":
            return targets
        if targets not in TARGET_PRESETS:
            targets = [targets]
    names = TARGET_PRESETS[targets] if isinstance(targets, str) else sorted(targets)
    modules = dict(model.named_modules())
    missing = [name for name in names if not any(module == name or module.endswith("." + name) for module in modules)]
    if missing:
        linear = {name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Linear)}
        raise UserError(
            f"no module of this model is called {', '.join(missing)}. Its linear layers are: "
            f"{', '.join(sorted(linear))}.",
            setting=f"model.adapter.{setting}",
            hint="Name some of them, or use all-linear.",
        )
    return list(names)


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the base model, without an adapter around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def merge_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Adds a model's adapter to its base model's weights, in place, and returns the base model.

    Raises:
        UserError: when the adapter is of a kind that can't be merged.
    """
    if not isinstance(model, PeftModel):
        return model
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise UserError(
            f"A {config.peft_type} adapter does not change weights, so it can't be merged. Engines that support PEFT "
            "load it as it is."
        )
    return model.merge_and_unload(safe_merge=True)


def load_adapter(
    model: PreTrainedModel | PeftModel, directory: str | Path, trainable: bool, name: str = "default"
) -> PeftModel:
    """Loads a saved adapter into the model under a name, in addition to those that it already has.

    Raises:
        UserError: when the directory contains no adapter in safetensors, or the adapter does not fit the base model.
    """
    path = adapter_directory(directory)
    read_adapter_config(path)  # PEFT reads it again, without checks
    try:
        return load_saved_adapter(model, path, name, trainable)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # PEFT checks few of the values in the configuration
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "PiSSA" in reason:
            raise UserError(f"{path}: {reason}", setting="model.adapter_path", hint=PISSA_HINT) from error
        raise _mismatch(path, str(model.config.name_or_path), f"PEFT says: {reason}") from error


def check_adapter(directory: Path, base: str, architecture: PretrainedConfig) -> None:
    """Checks that a saved adapter is intact and fits a base model, from the headers alone: nothing is loaded.

    Args:
        directory: of the adapter.
        base: name of the base model, for messages.
        architecture: of the base model.

    Raises:
        UserError: with the file and what is wrong with it.
    """
    weights, metadata = directory / SAFETENSORS_WEIGHTS_NAME, directory / METADATA_FILE
    saved = _tensor_shapes(weights)
    checksums = read_json(metadata).get(CHECKSUMS) if metadata.is_file() else None
    if checksums is not None and not isinstance(checksums, list):
        raise damaged(metadata, f"its {CHECKSUMS} is not a list")
    if checksums and sha256(weights) not in checksums:
        raise damaged(weights, "its bytes are not those that were saved")
    config = read_adapter_config(directory)
    config.base_model_name_or_path = None
    if isinstance(config, LoraConfig):
        config.init_lora_weights = False  # the initial values make no difference to the shapes
    try:
        with torch.device("meta"):
            base_model = AutoModelForCausalLM.from_config(copy.deepcopy(architecture))  # PEFT writes into it
            num_base_weights = base_model.num_parameters()
            model = add_adapter(base_model, config)
    except Exception as error:
        if not isinstance(config, LoraConfig):
            return  # some of the other methods can't be built without the base model's weights
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, ValueError):  # it targets modules that the base model does not have
            raise _mismatch(directory, base, reason) from error
        raise damaged(directory / CONFIG_FILE, f"PEFT says: {type(error).__name__}: {reason}") from error
    _check_size(directory, base, sum(map(math.prod, saved.values())), model.num_parameters() - num_base_weights)
    if not isinstance(config, LoraConfig):
        return
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tuple(value.shape) for name, value in state.items()}
    mismatched = sorted(name for name in expected if expected[name] != saved.get(name)) or sorted(
        saved.keys() - expected.keys()
    )
    if mismatched:
        name = mismatched[0]
        shapes = f"{saved.get(name, 'missing')} instead of {expected.get(name, 'none')}"
        raise _mismatch(directory, base, f"{len(mismatched)} weights differ, the first is {name}: {shapes}")


def _mismatch(directory: Path, base: str, details: str) -> UserError:
    return UserError(
        f"{directory}: the adapter does not fit the base model {base} ({details}). It was trained on "
        f"{adapter_base(directory) or 'another model'}.",
        setting="model.adapter_path",
        hint="Use that one as `model.base_model`, or copy the adapter's directory again.",
    )


def _check_size(directory: Path, base: str, num_saved: int, num_expected: int) -> None:
    if num_expected > max(MIN_WEIGHTS_THAT_COUNT, MAX_WEIGHTS_PER_SAVED_WEIGHT * num_saved):
        raise _mismatch(directory, base, f"it asks for {num_expected:,} weights, and has {num_saved:,}")


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def load_adapter_config(directory: str | Path) -> PeftConfig:
    """Returns the configuration of a saved adapter, as one to be trained."""
    config = read_adapter_config(adapter_directory(directory))
    config.inference_mode = False
    return config


def plain_lora_rank(directory: Path) -> int | None:
    """Returns the rank of a saved LoRA adapter; None for other adapters, DoRA, or one with fully trained modules."""
    config = read_adapter_config(directory)
    if not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save:
        return None
    return max([config.r, *(config.rank_pattern or {}).values()])


def has_adapter(model: nn.Module) -> bool:
    """Returns whether a model has a PEFT adapter."""
    return isinstance(model, PeftModel)


def num_virtual_tokens(model: nn.Module) -> int:
    """Returns the length of the soft prompt that a model's adapter puts before each sequence; 0 without one."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return 0
    count: int = model.active_peft_config.num_virtual_tokens
    return count


def trainable_names(model: nn.Module) -> set[str]:
    """Returns the names of the trained parameters."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def describe_adapter(model: nn.Module) -> str:
    """Returns one line: how many parameters are trained, of how many."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Two 4-bit weights are stored per byte, so its tensor has half as many elements as the layer has weights.
    total = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in model.parameters())
    return f"{trained / 1e6:.2f} M of {total / 1e6:.1f} M parameters are trained ({trained / total:.2%})"
