"""PEFT adapters: attaching, loading, saving, and the names of what is trained."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.data.prompts import PromptTemplate, template_from
from typst_lit.data.table import cache_key
from typst_lit.errors import UserError
from typst_lit.files import fsync_directory, sha256

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGET_PRESETS: dict[str, list[str]] = {
    "attention": ATTENTION,
    "attention+mlp": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
}  # "all-linear" is PEFT's own: every linear layer but the head
PISSA_HINT = " PiSSA starts from weights that are not quantized: use `model.use_4bit=false`."
ABOUT_FILE = "typst_lit.json"
CARD_FILE = "README.md"
DIGESTS = "sha256"  # in the about file: of the weights beside it, and of those that they are about to replace
COPY_ANEW = "Copy the adapter's folder anew, or take `best` or `last` beside it."
CONVERT = (  # weights_only: no code of the file is run
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('{folder}/adapter_model.bin', weights_only=True); "
    "s.save_file({{k: v.contiguous() for k, v in w.items()}}, '{folder}/adapter_model.safetensors')\""
)


def attach_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Freezes the model and puts new adapter weights, kept in fp32, into the modules that the config targets.

    Raises:
        UserError: when a target names no module of this model, or PEFT refuses the combination.
    """
    config = copy.deepcopy(config)  # PEFT writes into it, and the same object may be the default of another run
    config.task_type = "CAUSAL_LM"
    for name in ("target_modules", "feedforward_modules", "modules_to_save"):
        targets = getattr(config, name, None)
        if targets:
            setattr(config, name, _checked_targets(model, targets, name))
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"model.adapter: {error}{PISSA_HINT if 'PiSSA' in str(error) else ''}") from error


def _checked_targets(model: nn.Module, targets: Any, option: str) -> Any:
    if isinstance(targets, str):
        if targets == "all-linear":
            return targets
        if targets not in TARGET_PRESETS:
            targets = [targets]
    wanted = TARGET_PRESETS[targets] if isinstance(targets, str) else sorted(targets)
    there = [name for name, _ in model.named_modules()]
    missing = [t for t in wanted if not any(name == t or name.endswith("." + t) for name in there)]
    if missing:
        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise UserError(
            f"model.adapter.{option}: no module of this model is called {', '.join(missing)}. Its linear layers are: "
            f"{', '.join(sorted(linear))}. Name some of them, or use all-linear."
        )
    return list(wanted)


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
    """Puts a saved adapter into the model, beside those that it has already, under a name.

    Raises:
        UserError: when the directory holds no adapter in safetensors, or one that was made for another base model.
    """
    path = adapter_directory(directory)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), adapter_name=name, is_trainable=trainable)
            return model
        return PeftModel.from_pretrained(model, str(path), adapter_name=name, is_trainable=trainable)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        if "PiSSA" in str(error):
            raise UserError(f"model.adapter_path {path}: {error}{PISSA_HINT}") from error
        made_for = adapter_base(path) or "another model"
        raise UserError(
            f"model.adapter_path {path}: the adapter does not fit the base model "
            f"{model.config._name_or_path}; it was made for {made_for}. Give that one as the base model "
            "(--model.base_model, in generate and serve --base-model).\n"
            f"PEFT says: {str(error).splitlines()[0]}"
        ) from error


def check_adapter(directory: Path, base: str, architecture: PretrainedConfig) -> None:
    """Checks that a saved adapter is whole and fits a base model, from the headers alone: nothing is loaded.

    Args:
        directory: of the adapter.
        base: name of the base model, for messages.
        architecture: of the base model.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    weights, about = directory / SAFETENSORS_WEIGHTS_NAME, directory / ABOUT_FILE
    theirs = _shapes(weights)
    digests = _read_json(about).get(DIGESTS) if about.is_file() else None
    if digests and sha256(weights) not in digests:
        raise UserError(f"{weights}: is damaged: its bytes are not those that were saved. {COPY_ANEW}")
    _read_json(directory / "adapter_config.json")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        if config.peft_type is None:
            raise ValueError("no peft_type")
    except Exception as error:
        raise UserError(
            f"{directory / 'adapter_config.json'}: is not a configuration that PEFT knows ({error}). {COPY_ANEW}"
        ) from error
    if not isinstance(config, LoraConfig):
        return  # of the other methods, some can't be made without the base model's weights
    config.init_lora_weights = False  # what it starts from makes no difference to the shapes
    try:
        with torch.device("meta"):
            model = get_peft_model(AutoModelForCausalLM.from_config(architecture), config)
    except ValueError as error:  # it targets modules that the base model has not
        raise _unfit(directory, base, str(error).splitlines()[0]) from error
    ours = {
        name: tuple(value.shape)
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    odd = sorted(name for name in ours if ours[name] != theirs.get(name)) or sorted(theirs.keys() - ours.keys())
    if odd:
        there, wanted = (shapes.get(odd[0], "missing") for shapes in (theirs, ours))
        raise _unfit(directory, base, f"{len(odd)} weights differ, the first being {odd[0]}: {there} for {wanted}")


def _unfit(directory: Path, base: str, what: str) -> UserError:
    return UserError(
        f"model.adapter_path {directory}: {SAFETENSORS_WEIGHTS_NAME} does not fit the base model {base} ({what}). It "
        f"was made for {adapter_base(directory) or 'another model'}: give that one as the base model "
        "(--model.base_model, in generate and serve --base-model), or the adapter's folder as it was saved."
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is damaged ({error}). {COPY_ANEW}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}). {COPY_ANEW}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: is damaged (there is no JSON object in it). {COPY_ANEW}")
    return found


def adapter_directory(directory: str | Path) -> Path:
    """Returns the directory that really holds the adapter: the one given, or ``adapter/best`` or ``last`` in a run's.

    Raises:
        UserError: when there is none, or only one in a format that can run code when it is loaded.
    """
    path = Path(directory).expanduser()
    for candidate in (path, path / "best", path / "last", path / "adapter" / "best", path / "adapter" / "last"):
        if (candidate / "adapter_config.json").is_file():
            if (candidate / SAFETENSORS_WEIGHTS_NAME).is_file():
                return candidate
            raise UserError(
                f"model.adapter_path {candidate}: has no {SAFETENSORS_WEIGHTS_NAME}. Adapters are read from "
                "safetensors only, because a .bin file can run code when it is opened. To convert one:\n"
                f"  {CONVERT.format(folder=candidate)}"
            )
    there = "the folder holds: " + ", ".join(sorted(p.name for p in path.iterdir())[:12]) if path.is_dir() else (
        "there is no such folder"
    )  # fmt: skip
    raise UserError(
        f"model.adapter_path {directory}: no adapter there (an adapter_config.json and its weights); {there}."
    )


def model_directory(directory: str | Path) -> Path | None:
    """Returns the folder of a model that was trained whole: the one given, or ``model/best`` or ``last`` in a run's."""
    path = Path(directory).expanduser()
    for candidate in (path, path / "best", path / "last", path / "model" / "best", path / "model" / "last"):
        weights = any(candidate.glob("model*.safetensors"))
        if weights and (candidate / "config.json").is_file() and not (candidate / "adapter_config.json").is_file():
            return candidate
    return None


def adapter_base(directory: Path) -> str | None:
    """Returns the name of the base model that an adapter was made for, if it says so."""
    try:
        return _read_json(directory / "adapter_config.json").get("base_model_name_or_path")
    except UserError:
        return None


def plain_lora_rank(directory: Path) -> int | None:
    """Returns the rank of a saved LoRA adapter; None for other adapters, DoRA, or one with fully trained modules."""
    config = PeftConfig.from_pretrained(str(directory))
    if not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save:
        return None
    return max([config.r, *(config.rank_pattern or {}).values()])


def adapter_key(directory: Path) -> str:
    """Returns a text that changes whenever an adapter's weights are written anew."""
    weights = (directory / SAFETENSORS_WEIGHTS_NAME).stat()
    return cache_key(str(directory), weights.st_size, weights.st_mtime_ns)


def adapter_template(directory: Path) -> PromptTemplate | None:
    """Returns the prompt template that an adapter was trained with, if it is one of ours."""
    file = directory / ABOUT_FILE
    if not file.is_file():
        return None
    try:
        return template_from(json.loads(file.read_text("utf-8"))["template"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({error}). Save the adapter anew, or name --data.template.") from error


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
    """Returns the names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_weights(
    model: nn.Module,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    card: str,
) -> None:
    """Saves an adapter (or a model without one) in safetensors, with tokenizer, template and model card.

    Everything is written to a temporary folder beside the target and moved in file by file, the weights last: a
    reader, or a crash, finds the old weights or the new ones, never half of either.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.parent.glob(f".{directory.name}-*"):  # a save that was killed
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    # Left to itself, PEFT asks the hub at every save whether the frozen embeddings should be saved too.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    try:
        model.save_pretrained(str(scratch), **options)  # type: ignore[operator]
        tokenizer.save_pretrained(str(scratch))
        about = {"template": template.describe(), DIGESTS: _digests(scratch, directory)}
        (scratch / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        (scratch / CARD_FILE).write_text(card, "utf-8")
        for file in sorted(scratch.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            file.replace(directory / file.name)
        fsync_directory(directory)
    except Exception as error:
        # The libraries beneath raise kinds of their own: SafetensorError, or a plain Exception.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise UserError(
            f"{directory} could not be written ({error}). What was there before is whole. Free some space, or name "
            "another place with --run_dir."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _digests(new: Path, old: Path) -> list[str]:
    # The about file is moved in before the weights: for a moment it stands beside the old ones.
    found = [sha256(folder / SAFETENSORS_WEIGHTS_NAME) for folder in (new, old)
             if (folder / SAFETENSORS_WEIGHTS_NAME).is_file()]  # fmt: skip
    return list(dict.fromkeys(found))


def describe_adapter(model: nn.Module) -> str:
    """Returns one line: how much is trained, of how much."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # A 4-bit weight is stored two to a byte, so its tensor has half as many elements as the layer has weights.
    total = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in model.parameters())
    return f"{trained / 1e6:.2f} M of {total / 1e6:.1f} M parameters are trained ({trained / total:.2%})"
