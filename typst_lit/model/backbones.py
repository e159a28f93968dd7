"""Base models: a causal language model and its tokenizer, by hub name or folder, in 4 bits or 16."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub import snapshot_download
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import sdpa_attention
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from typst_lit.errors import UserError
from typst_lit.model import qwen1


def compute_dtype(device: torch.device) -> torch.dtype:
    """Returns the type that matrix products run in: bf16 on GPUs that have it, fp16 on older ones, fp32 on the CPU.

    The capability is asked for, because `torch.cuda.is_bf16_supported` also says yes where bf16 is only emulated.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.float32


def keep_differentiable(model: nn.Module) -> None:
    """Keeps the 4-bit layers of a model that is trained on the CPU in the layout that has a gradient.

    On a CPU with AVX512-BF16, bitsandbytes repacks a layer at its first evaluation for a faster kernel, does not undo
    it in training mode, and that kernel has no backward pass: after a validation, training would go on with gradients
    that are silently wrong.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def repeat_keys_on_old_gpus(device: torch.device) -> None:
    """Keeps attention from holding length x length scores on GPUs before Ampere.

    There, torch has no fused kernel for grouped keys and values: asked for one, as transformers does wherever there is
    no mask, it takes the plain one. With keys and values repeated, the memory-efficient kernel serves.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        sdpa_attention.use_gqa_in_sdpa = lambda *args, **kwargs: False


class Backbone(ABC):
    """A way to load a base model. Subclass it for a family that `PretrainedBackbone` can't load."""

    def load_config(self, name: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
        """Returns the architecture of a base model.

        Raises:
            UserError: when there is none of this name, or it is of a kind that can't be trained here.
        """
        place = path_or_name(name)
        try:
            original, _ = PretrainedConfig.get_config_dict(place, revision=revision)
            if original.get("model_type") == qwen1.MODEL_TYPE:
                return qwen1.qwen2_config(original)
            config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise _not_loaded("model", name, error) from error
        assert isinstance(config, PretrainedConfig)
        check_kind(name, config)
        return config

    def fetch(self, name: str, revision: str | None) -> None:  # noqa: B027 - a backbone may have nothing to fetch
        """Brings what the other methods load onto this machine, so that several processes don't all download it."""

    @abstractmethod
    def load_tokenizer(self, name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
        """Returns the tokenizer of a base model."""

    @abstractmethod
    def load_model(
        self,
        name: str,
        revision: str | None,
        trust_remote_code: bool,
        use_4bit: bool,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> PreTrainedModel:
        """Returns the model on the device, in a type or else its `compute_dtype`, the linear layers in 4 bits if so
        asked.
        """


NF4_BLOCK = 64  # weights that share a scale
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # how configurations count them
FETCHED = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py"]
BUILT_IN = {"typst-nano": "model/nano"}  # models that come with this package, by the folders they are in


def path_or_name(name: str) -> str:
    """Returns what transformers knows a base model by: the folder of a built-in one, else the name itself."""
    return str(files("typst_lit") / BUILT_IN[name]) if name in BUILT_IN else name


class PretrainedBackbone(Backbone):
    """Models that transformers loads: built-in ones, from the hub, its cache, or a folder."""

    def fetch(self, name: str, revision: str | None) -> None:
        if name in BUILT_IN or Path(name).expanduser().is_dir():
            return
        try:
            snapshot_download(name, revision=revision, allow_patterns=FETCHED)
        except Exception as error:
            raise _not_loaded("model", name, error) from error

    def load_tokenizer(self, name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
        self.load_config(name, revision, trust_remote_code)  # of a model that can't be used, no data is tokenised
        try:
            place = path_or_name(name)
            if _is_qwen1(place, revision):
                return qwen1.load_qwen1_tokenizer(place, revision)
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise _not_loaded("tokenizer", name, error) from error
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError(f"{name}: holds no tokenizer that transformers knows.")
        return tokenizer

    def load_model(
        self,
        name: str,
        revision: str | None,
        trust_remote_code: bool,
        use_4bit: bool,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> PreTrainedModel:
        repeat_keys_on_old_gpus(device)
        dtype = dtype or compute_dtype(device)
        quantization = None
        if use_4bit:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        config = self.load_config(name, revision, trust_remote_code)
        try:
            place = path_or_name(name)
            options: dict[str, Any] = {
                "config": config, "revision": revision, "quantization_config": quantization, "dtype": dtype,
                "attn_implementation": "sdpa", "device_map": {"": device},
            }  # fmt: skip
            if _is_qwen1(place, revision):
                model: Any = qwen1.load_qwen1(place, **options)
            else:
                model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise _not_loaded("model", name, error) from error
        assert isinstance(model, PreTrainedModel)
        for module in model.modules():
            if isinstance(module, Linear4bit) and module.in_features % NF4_BLOCK:
                module.support_avx512bf16_for_cpu = False  # that kernel's layout takes whole blocks only
        model.name_or_path = model.config._name_or_path = name  # adapters note it, and a built-in's folder is nobody's
        return model


def _is_qwen1(place: str, revision: str | None) -> bool:
    return PretrainedConfig.get_config_dict(place, revision=revision)[0].get("model_type") == qwen1.MODEL_TYPE


def known_elsewhere(name: str) -> bool:
    """Returns whether other engines know a base model under its name: not a built-in, not a first-generation Qwen."""
    return name not in BUILT_IN and not _is_qwen1(name, None)


def check_kind(name: str, config: PretrainedConfig) -> None:
    """Refuses models that are no plain causal language models.

    Raises:
        UserError: naming what it is instead.
    """
    kind = None
    if config.is_encoder_decoder:
        kind = "an encoder with a decoder"
    elif hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        kind = "a multimodal model"
    elif any(
        (getattr(config, name, None) or 0) > 1 for name in ("num_experts", "num_local_experts", "n_routed_experts")
    ):
        kind = "a mixture of experts, whose experts are no linear layers that 4 bits or an adapter could take"
    elif not (config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "auto_map", None)) or not any(
        "CausalLM" in head or "LMHead" in head for head in config.architectures or ["CausalLM"]
    ):
        kind = "no language model that writes from left to right"
    if kind:
        raise UserError(
            f"model.base_model {name}: is {kind} ({config.model_type}). Choose a dense causal language model: "
            "Qwen/Qwen3-1.7B, Qwen/Qwen-1_8B, a Qwen2.5, a Llama or SmolLM, or the built-in typst-nano."
        )


def _not_loaded(what: str, name: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    folder = Path(name).expanduser()
    if folder.is_dir():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
        return UserError(
            f"model.base_model: no {what} could be loaded from the folder {name} ({reason}). It holds: {held}."
        )
    return UserError(
        f"model.base_model: the {what} {name} could not be loaded: {reason}\n"
        "It is no folder here; as a hub name, check the spelling, the network, and `hf auth login` for a gated model."
    )
