"""Calls of PEFT that warn its users of its own code, as read in 0.21.2."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


@contextmanager
def _ignore_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # It reads a property that transformers 5.20 renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        # It warns of an argument that is its own default.
        warnings.filterwarnings("ignore", message="`loftq_config` specified")
        yield


def add_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Returns the model with new adapter weights: `get_peft_model`."""
    with _ignore_own_warnings():
        return get_peft_model(model, config)


def load_saved_adapter(model: PreTrainedModel | PeftModel, directory: Path, name: str, trainable: bool) -> PeftModel:
    """Returns the model with a saved adapter: `PeftModel.from_pretrained`, or `load_adapter` where it has one."""
    with _ignore_own_warnings():
        if isinstance(model, PeftModel):
            model.load_adapter(str(directory), adapter_name=name, is_trainable=trainable)
            return model
        return PeftModel.from_pretrained(model, str(directory), adapter_name=name, is_trainable=trainable)
