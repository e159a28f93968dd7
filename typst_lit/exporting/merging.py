"""Merged weights: the adapter in its base model's 16-bit weights, as a directory that transformers loads by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from typst_lit.data.encoding import Encoder
from typst_lit.inference.decoder import eos_token_ids
from typst_lit.inference.settings import GenerationSettings
from typst_lit.model.locations import AdapterMetadata
from typst_lit.model.saving import write_metadata

# Engines that only offer chats pass the prompt through unchanged, because that is what the model was trained on.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_merged(
    model: PreTrainedModel,
    encoder: Encoder,
    output: Path,
    dtype: torch.dtype,
    shard_size: str,
    settings: GenerationSettings,
    metadata: AdapterMetadata,
) -> None:
    """Writes a model, its tokenizer and its prompt template into a directory.

    Args:
        model: without an adapter: see `adapters.merge_adapter`.
        encoder: has the tokenizer and the template.
        output: the directory, which must be empty.
        dtype: of the weights.
        shard_size: maximum size of a weights file, such as ``5GB``.
        settings: how to sample.
        metadata: what the adapter's files say of its training.
    """
    model.generation_config = _generation_config(model, encoder.tokenizer, settings)
    model.to(dtype).save_pretrained(output, max_shard_size=shard_size)  # type: ignore[arg-type]
    _save_tokenizer(encoder.tokenizer, output)
    write_metadata(output, encoder.template, metadata)


def _generation_config(model: PreTrainedModel, tokenizer: Any, settings: GenerationSettings) -> GenerationConfig:
    # without the repetition penalty, which in transformers also counts the tokens of the prompt
    values = {} if settings.is_greedy else settings.values()
    return GenerationConfig(
        do_sample=not settings.is_greedy,
        **{name: values[name] for name in ("temperature", "top_p", "top_k") if name in values},
        eos_token_id=sorted(eos_token_ids(model.generation_config, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )


def _save_tokenizer(tokenizer: Any, directory: Path) -> None:
    chat_template, tokenizer.chat_template = tokenizer.chat_template, CHAT_TEMPLATE
    try:
        tokenizer.save_pretrained(directory)
    finally:
        tokenizer.chat_template = chat_template
