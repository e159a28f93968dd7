"""Reading ``adapter_config.json``, which may be hostile.

PEFT passes names in it to ``re``, and some of its settings load models and files, or copy layers. So names must be
plain, and those settings are refused, before PEFT reads the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from typst_lit.errors import UserError
from typst_lit.model.locations import CONFIG_FILE, damaged, read_json

MAX_NAMES = 2000  # PEFT compares each with each module
MAX_INIT_ITERATIONS = 1000
# What makes a regular expression slow: repetition, alternatives, classes. A dot and an anchor do no harm.
_REGEX_SYNTAX = re.compile(r"[*+?{}\[\]|()]|\\(?!\.)")
_LONG_NUMBER = re.compile(r"\d{4,}")
_TEXTS = ("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "prompt_tuning_init_text")
REFUSED_SETTINGS = {
    "adapters": "loads other adapters",
    "layer_replication": "copies layers of the base model",
    "megatron_config": "imports Megatron",
    "prompt_tuning_init_state_dict_path": "loads another file",
    "shadow_model": "loads another model",
    "tokenizer_kwargs": "changes how a tokenizer is loaded",
}


def read_adapter_config(directory: Path) -> PeftConfig:
    """Returns the configuration of a saved adapter, as PEFT reads it.

    Raises:
        UserError: when the file is damaged, or asks for more than an adapter needs.
    """
    path = directory / CONFIG_FILE
    content = read_json(path)
    _check_settings(path, content)
    _check_values(path, content)
    try:
        config = PeftConfig.from_pretrained(str(directory))
        if config.peft_type is None:
            raise ValueError("no peft_type")
    except Exception as error:
        raise damaged(path, f"not a configuration that PEFT can load: {error}") from error
    return config


def _check_settings(path: Path, content: dict[str, Any]) -> None:
    for name, effect in REFUSED_SETTINGS.items():
        if content.get(name):
            raise _refused(path, name, f"{effect}, which an adapter from a file may not do", "Remove it from the file.")
    tokenizer = content.get("tokenizer_name_or_path")
    if tokenizer and tokenizer != content.get("base_model_name_or_path"):
        reason = "is not the base model: it would load another repository"
        raise _refused(path, "tokenizer_name_or_path", reason, "Remove it from the file.")


def _check_values(path: Path, content: dict[str, Any]) -> None:
    num_names = 0
    for field, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise _refused(path, field, f"is {value}", "Copy the adapter's directory again.")
        if not isinstance(value, str) or field in _TEXTS:
            continue
        num_names += 1
        if num_names > MAX_NAMES:
            raise _refused(path, field, f"is the name {num_names} of the file; it may have {MAX_NAMES}", "")
        if _REGEX_SYNTAX.search(value):
            reason = (
                f"has a regular expression ({_shorten(value)}). Some would run for hours, so that only plain names are "
                "accepted from a file"
            )
            raise _refused(path, field, reason, _plain_names_hint(path.parent, field))
        if field == "init_lora_weights" and _LONG_NUMBER.search(value):
            raise _refused(path, field, f"asks for more than {MAX_INIT_ITERATIONS} iterations", "")
    loftq = content.get("loftq_config")
    iterations = loftq.get("loftq_iter") if isinstance(loftq, dict) else None
    if isinstance(iterations, int | float) and iterations > MAX_INIT_ITERATIONS:
        raise _refused(path, "loftq_config", f"asks for more than {MAX_INIT_ITERATIONS} iterations", "")


def _leaves(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the field and the value of everything in a configuration; the keys of nested objects are values, too."""
    pending = list(content.items())
    while pending:
        field, value = pending.pop()
        if isinstance(value, dict):
            pending += [(field, item) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            pending += [(field, item) for item in value]
        else:
            yield field, value


def _refused(path: Path, field: str, reason: str, hint: str) -> UserError:
    return UserError(f"{path}: field '{field}' {reason}.", hint=hint)


def _plain_names_hint(directory: Path, field: str) -> str:
    """Returns how to write the names of modules, with those of the saved weights."""
    example = '["q_proj", "v_proj"]'
    if field == "target_modules":
        try:
            with safe_open(directory / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
                weights = [name.split(".lora_")[0] for name in file.keys() if ".lora_" in name]  # noqa: SIM118
        except (SafetensorError, OSError):
            weights = []
        names = sorted({name.rpartition(".")[2] for name in weights})
        if names and len(names) <= 20 and all(name.isidentifier() for name in names):
            example = json.dumps(names)
    return f'Write the names as a list: "{field}": {example}.'


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
