"""Documents from the model of a trainer: a `Generator` over what it has loaded."""

from __future__ import annotations

from typing import Any

from typst_lit.data.datamodule import TypstDataModule
from typst_lit.inference.generator import Generator
from typst_lit.inference.model_spec import model_identity, stored_settings
from typst_lit.inference.settings import GenerationSettings, adapter_settings
from typst_lit.model.locations import adapter_directory
from typst_lit.model.module import TypstModule
from typst_lit.typesetting.typesetter import Typesetter


def trained_model_identity(module: TypstModule) -> dict[str, Any]:
    """Returns a module's weights as plain values; the same as ``typst-lit generate`` has for them."""
    adapters = {"default": adapter_directory(module.adapter_path)} if module.adapter_path else {}
    identity = model_identity(module.base_model, module.use_4bit, adapters)
    return {**identity, "revision": module.revision} if module.revision else identity


def default_settings(module: TypstModule, data: TypstDataModule) -> GenerationSettings:
    """Returns the generation settings of a module's adapter; those of ``typst-lit generate`` for it.

    While an adapter is trained, the token limit follows from the training data, and the settings are those of the
    adapter that is trained further, if one is.

    Raises:
        UserError: when the files of that adapter are damaged.
    """
    if not module.adapter_path:
        return adapter_settings({}, data.max_completion_tokens)
    directory = adapter_directory(module.adapter_path)
    return stored_settings(directory, data.max_completion_tokens if module.is_fitting else None)


def build_generator(
    module: TypstModule,
    data: TypstDataModule,
    settings: GenerationSettings,
    typesetter: Typesetter | None = None,
    max_attempts: int = 1,
) -> Generator:
    """Returns a generator over a module's loaded model.

    Args:
        module: what has loaded the model.
        data: what has the prompt template, and the batch size (``eval_batch_size``).
        settings: how to sample.
        typesetter: what compiles; None compiles nothing.
        max_attempts: maximum number of attempts at a document, until it is clean.
    """
    return Generator(
        module.model,
        module.tokenizer,
        {None: data.prompt_template},
        settings,
        typesetter,
        max_attempts,
        data.eval_batch_size,
        contracts={None: module.contract or module.adapter_metadata.contract},
        adapter_settings={None: default_settings(module, data)},
    )
