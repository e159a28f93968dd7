"""Base models: a causal language model and its tokenizer, by hub name or directory, in 4 bits or 16."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from typst_lit._compat.transformers import never_use_gqa_kernels
from typst_lit.errors import UserError
from typst_lit.model import qwen1
from typst_lit.model.locations import BUILT_IN, path_or_name

AUTOCAST_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def compute_dtype(device: torch.device, precision: str | None = None) -> torch.dtype:
    """Returns the dtype of matrix products: bf16 on GPUs that have it, fp16 on older ones, fp32 on the CPU.

    Args:
        device: where they run.
        precision: that of the trainer. On a GPU, ``16-mixed`` and ``bf16-mixed`` decide. Weights of another dtype than
            autocast's would promote the hidden states to fp32.

    >>> compute_dtype(torch.device("cpu"))
    torch.float32
    >>> compute_dtype(torch.device("cuda"), "16-mixed")
    torch.float16
    """
    # Not torch.cuda.is_bf16_supported: that is also true where bf16 is only emulated.
    if device.type == "cuda":
        if precision in AUTOCAST_DTYPES:
            return AUTOCAST_DTYPES[precision]
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return torch.float32


def keep_differentiable(model: nn.Module) -> None:
    """Keeps the 4-bit layers of a model that is trained on the CPU in a layout that has a gradient.

    On a CPU with AVX512-BF16, bitsandbytes repacks a layer at its first evaluation for a faster kernel. It does not
    undo this in training mode, and that kernel has no backward pass: after a validation, training would continue with
    gradients that are silently wrong.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def four_bit_problem(device: torch.device) -> str | None:
    """Returns why a 4-bit layer can't be created and trained through on a device; None when it can.

    >>> four_bit_problem(torch.device("cpu"))
    """
    try:
        layer = Linear4bit(64, 64, bias=False, quant_type="nf4").to(device)
        inputs = torch.randn(2, 64, device=device, requires_grad=True)
        layer(inputs).sum().backward()
    except Exception as error:
        return f"does not work ({error})"
    return None if inputs.grad is not None and bool(inputs.grad.isfinite().all()) else "gives wrong gradients"


def avoid_math_attention(device: torch.device) -> None:
    """Keeps transformers' attention from holding length x length scores on GPUs before Ampere.

    There, torch has no fused kernel for grouped heads. Called with them, as transformers does wherever there is no
    mask, it takes the math kernel. With keys and values repeated, it takes the memory-efficient one.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        never_use_gqa_kernels()


class Backbone(ABC):
    """A way to load a base model. Subclass it for models that `PretrainedBackbone` can't load.

    >>> class MyBackbone(PretrainedBackbone):
    ...     def load_tokenizer(self, name: str, revision: str | None, trust_remote_code: bool):
    ...         tokenizer = super().load_tokenizer(name, revision, trust_remote_code)
    ...         tokenizer.model_max_length = 4096
    ...         return tokenizer
    >>> MyBackbone().load_tokenizer("typst-nano", None, False).model_max_length
    4096
    """

    def load_config(self, name: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
        """Returns the architecture of a base model.

        Raises:
            UserError: when there is no model of this name, or it can't be trained here.
        """
        source = path_or_name(name)
        try:
            config_dict, _ = PretrainedConfig.get_config_dict(source, revision=revision)
            if config_dict.get("model_type") == qwen1.MODEL_TYPE:
                return qwen1.qwen2_config(config_dict)
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise _loading_error("model", name, error) from error
        assert isinstance(config, PretrainedConfig)
        check_architecture(name, config)
        return config

    def fetch(self, name: str, revision: str | None) -> None:  # noqa: B027 - a backbone may have nothing to fetch
        """Downloads what the other methods load, so that several ranks of this machine don't all do it."""

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
        """Returns the model on the device.

        Args:
            name: the hub name or directory.
            revision: branch, tag or commit on the hub.
            trust_remote_code: whether code of the repository may run.
            use_4bit: whether to load the linear layers in 4 bits.
            device: where to load it.
            dtype: of the other weights; by default the device's `compute_dtype`.

        Raises:
            UserError: when it can't be loaded.
        """


NF4_BLOCK_SIZE = 64  # weights that share a scale
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # their names in configurations
FETCH_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py"]


class PretrainedBackbone(Backbone):
    """Loads the models that transformers can load: built-in ones, from the hub, its cache, or a directory.

    >>> PretrainedBackbone().load_config("typst-nano", None, False).model_type
    'qwen3'
    """

    def fetch(self, name: str, revision: str | None) -> None:
        if name in BUILT_IN or Path(name).expanduser().is_dir():
            return
        try:
            snapshot_download(name, revision=revision, allow_patterns=FETCH_PATTERNS)
        except Exception as error:
            raise _loading_error("model", name, error) from error

    def load_tokenizer(self, name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
        self.load_config(name, revision, trust_remote_code)  # fails before data is tokenized for an unusable model
        try:
            source = path_or_name(name)
            if _is_qwen1(source, revision):
                return qwen1.load_qwen1_tokenizer(source, revision)
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise _loading_error("tokenizer", name, error) from error
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError(f"{name} has no tokenizer that transformers can load.", setting="model.base_model")
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
        avoid_math_attention(device)
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
            source = path_or_name(name)
            options: dict[str, Any] = {
                "config": config,
                "revision": revision,
                "quantization_config": quantization,
                "dtype": dtype,
                "attn_implementation": "sdpa",
                "device_map": {"": device},
            }
            if _is_qwen1(source, revision):
                model: Any = qwen1.load_qwen1(source, **options)
            else:
                model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise _loading_error("model", name, error) from error
        assert isinstance(model, PreTrainedModel)
        for module in model.modules():
            if isinstance(module, Linear4bit) and module.in_features % NF4_BLOCK_SIZE:
                module.support_avx512bf16_for_cpu = False  # that kernel's layout needs complete blocks
        # PEFT writes this into adapters, where the directory of a built-in model would be of no use.
        model.name_or_path = model.config.name_or_path = name
        return model


def _is_qwen1(source: str, revision: str | None) -> bool:
    return PretrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type") == qwen1.MODEL_TYPE


def loads_in_other_engines(name: str) -> bool:
    """Returns whether other engines can load a base model by its name: no built-in one, no first-generation Qwen.

    >>> loads_in_other_engines("typst-nano")
    False
    """
    return name not in BUILT_IN and not _is_qwen1(name, None)


def check_architecture(name: str, config: PretrainedConfig) -> None:
    """Checks that a model is a dense, text-only, causal language model.

    Raises:
        UserError: when it is not, with what it is instead.
    """
    kind = None
    if config.is_encoder_decoder:
        kind = "an encoder-decoder model"
    elif hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        kind = "a multimodal model"
    elif any((getattr(config, key, None) or 0) > 1 for key in EXPERT_COUNTS):
        kind = "a mixture of experts, whose experts are not linear layers that 4 bits or an adapter could replace"
    elif not (config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "auto_map", None)) or not any(
        "CausalLM" in head or "LMHead" in head for head in config.architectures or ["CausalLM"]
    ):
        kind = "not a causal language model"
    if kind:
        raise UserError(
            f"{name} is {kind} ({config.model_type}).",
            setting="model.base_model",
            hint="Choose a dense causal language model: Qwen/Qwen3-1.7B, Qwen/Qwen-1_8B, a Qwen2.5, a Llama or SmolLM, "
            "or the built-in typst-nano.",
        )


def _loading_error(part: str, name: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    directory = Path(name).expanduser()
    if directory.is_dir():
        files_found = ", ".join(sorted(path.name for path in directory.iterdir())[:12]) or "nothing"
        return UserError(
            f"the {part} could not be loaded from the directory {name} ({reason}). It contains: {files_found}.",
            setting="model.base_model",
        )
    return UserError(
        f"the {part} {name} could not be loaded: {reason}",
        setting="model.base_model",
        hint="It is not a directory on this machine. If it is a hub name, check its spelling, the network, and for a "
        "gated model `hf auth login`.",
    )
