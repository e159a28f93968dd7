"""Merged weights: the adapter in its base model's 16-bit weights, as a directory that transformers loads by itself."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from typst_lit.data.encoding import Encoder
from typst_lit.inference.decoder import eos_token_ids
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.model.saving import METADATA_FILE

# Engines that only offer chats pass the prompt through unchanged, because that is what the model was trained on.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_merged(model: PreTrainedModel, encoder: Encoder, output: Path, dtype: torch.dtype, shard_size: str) -> None:
    """Writes a model, its tokenizer and its prompt template as a directory, atomically.

    Args:
        model: without an adapter: see `adapters.merge_adapter`.
        encoder: has the tokenizer and the template.
        output: the directory, which must be empty or not exist.
        dtype: of the weights.
        shard_size: maximum size of a weights file, such as ``5GB``.
    """
    model.generation_config = _generation_config(model, encoder.tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        model.to(dtype).save_pretrained(scratch, max_shard_size=shard_size)  # type: ignore[arg-type]
        _save_tokenizer(encoder.tokenizer, scratch)
        about = {"template": encoder.template.describe()}
        (scratch / METADATA_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        scratch.chmod(0o755)  # mkdtemp's own mode would lock out a server that runs as another user
        if output.exists():
            output.rmdir()
        scratch.replace(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _generation_config(model: PreTrainedModel, tokenizer: Any) -> GenerationConfig:
    settings = asdict(GenerationSettings())
    return GenerationConfig(
        do_sample=True,
        **{name: settings[name] for name in ("temperature", "top_p", "top_k")},
        eos_token_id=sorted(eos_token_ids(model.generation_config, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )


def _save_tokenizer(tokenizer: Any, directory: Path) -> None:
    chat_template, tokenizer.chat_template = tokenizer.chat_template, CHAT_TEMPLATE
    try:
        tokenizer.save_pretrained(directory)
    finally:
        tokenizer.chat_template = chat_template
