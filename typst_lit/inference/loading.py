"""Which model and adapters to generate with, and how to load them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.utils import enable_progress_bars
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from typst_lit.contract.text_contract import TextContract
from typst_lit.data.prompts import PromptTemplate
from typst_lit.inference.decoder import BaseDecoder
from typst_lit.inference.model_spec import ModelSpec
from typst_lit.inference.settings import GenerationSettings
from typst_lit.model.adapters import check_adapter, load_adapter
from typst_lit.model.backbones import PretrainedBackbone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to generate.

    Attributes:
        model: a causal language model in evaluation mode, or the decoder of a backend that holds its own.
        tokenizer: its tokenizer.
        templates: see `ModelSpec`.
        contracts: see `ModelSpec`.
        adapter_settings: see `ModelSpec`.
        identity: see `ModelSpec`.
    """

    model: PreTrainedModel | BaseDecoder
    tokenizer: PreTrainedTokenizerBase
    templates: dict[str | None, PromptTemplate]
    contracts: dict[str | None, TextContract | None]
    adapter_settings: dict[str | None, GenerationSettings]
    identity: dict[str, Any]


def validate_model(spec: ModelSpec) -> PretrainedConfig:
    """Checks that a model's adapters are intact and fit it, without loading weights; returns its configuration.

    Raises:
        UserError: when the base model does not exist, or an adapter does not fit.
    """
    config = PretrainedBackbone().load_config(spec.base_model, None, False)
    for path in spec.adapters.values():
        check_adapter(path, spec.base_model, config)
    return config


def load_model(spec: ModelSpec) -> LoadedModel:
    """Loads a model with its adapters and its tokenizer.

    Raises:
        UserError: when the base model does not exist, or an adapter does not fit.
    """
    validate_model(spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = PretrainedBackbone()
    tokenizer = backbone.load_tokenizer(spec.base_model, None, False)
    log.info("Loading %s%s ...", spec.base_model, " in 4 bits" if spec.use_4bit else "")
    with _without_loading_bar():
        model: Any = backbone.load_model(spec.base_model, None, False, spec.use_4bit, device)
    for name, path in spec.adapters.items():
        model = load_adapter(model, path, trainable=False, name=name)
    if spec.merge:
        model = model.merge_and_unload()
    return LoadedModel(model.eval(), tokenizer, spec.templates, spec.contracts, spec.adapter_settings, spec.identity)


@contextmanager
def _without_loading_bar() -> Iterator[None]:
    """Hides the progress bar for reading weights from the disk; that of a download stays."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
