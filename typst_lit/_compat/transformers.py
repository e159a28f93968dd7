"""Private API of transformers, as read in 5.23.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import sdpa_attention
from transformers.utils import cached_file


def attention_implementation(model: PreTrainedModel) -> str | None:
    """Returns the name of the attention function that a model's layers use.

    ``config._attn_implementation``: there is a public method to set it, and none to ask for it.
    """
    return getattr(model.config, "_attn_implementation", None)


def checkpoint_activations(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Makes a model checkpoint the activations of its layers; the options are those of torch's ``checkpoint``.

    Not private: the method had another name before 5.20, and the old name is deprecated.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def repeat_kv(states: Tensor, num_repeats: int) -> Tensor:
    """Returns keys or values (B, K, T, D) with each head repeated: (B, K * num_repeats, T, D).

    ``transformers.integrations.sdpa_attention.repeat_kv``, which transformers copies from model to model.
    """
    return sdpa_attention.repeat_kv(states, num_repeats)


def never_use_gqa_kernels() -> None:
    """Makes transformers' own attention repeat keys and values instead of asking SDPA for grouped heads.

    ``sdpa_attention.use_gqa_in_sdpa`` decides, and asks neither a setting nor the GPU's capability.
    """
    sdpa_attention.use_gqa_in_sdpa = lambda *args, **kwargs: False


def forget_weight_conversions(model: PreTrainedModel) -> None:
    """Makes a model save its weights under the names that it has, not those of the checkpoint it was loaded from.

    ``_weight_conversions``: `save_pretrained` reverses the conversions that `from_pretrained` noted there.
    """
    model_: Any = model
    model_._weight_conversions = None


def cached_file_if_any(name: str, filename: str, revision: str | None) -> Path | None:
    """Returns the path of a file of a model, downloaded if needed, or None where the model has no such file.

    ``_raise_exceptions_for_missing_entries``: without it, a missing file and a failing network raise the same.
    """
    path = cached_file(name, filename, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path is not None else None
