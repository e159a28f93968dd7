"""The three functions that users of the common inference script know."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.inference.generator import Generator
from typst_lit.inference.model_spec import resolve_model
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
_LOADED = "typst_lit_loaded"  # attribute of a model and of its tokenizer: what a Generator knows of its adapters


def load_model_and_tokenizer(
    base_model_name: str | None = None, adapter_path: str | Path | None = None, use_4bit: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a base model with its adapter, to be used for many records.

    Args:
        base_model_name: hub name, directory, or a built-in name; by default what the adapter names.
        adapter_path: directory of an adapter, or of a run; None for the base model alone.
        use_4bit: load the base model in 4 bits.

    Raises:
        UserError: when the model or adapter does not exist, or they do not fit.

    Example:
        >>> model, tokenizer = load_model_and_tokenizer("typst-nano", use_4bit=False)
    """
    generator = Generator.from_spec(resolve_model(adapter_path, base_model_name, use_4bit))
    # On both, so that one of them remembers the prompt template when the other was wrapped or replaced.
    about = {
        "templates": generator.templates,
        "identity": generator.identity,
        "contracts": generator.contracts,
        "adapter_settings": generator.adapter_settings,
    }
    for owner in (generator.model, generator.tokenizer):
        setattr(owner, _LOADED, about)
    return generator.model, generator.tokenizer


def inference_from_dict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_data: Mapping[str, Any]
) -> str:
    """Returns the Typst source of one record, not compiled; it is sampled as the adapter's run was configured.

    Args:
        model: what `load_model_and_tokenizer` returned.
        tokenizer: likewise.
        input_data: the record's fields, or ``{"input": {...}}``.

    Raises:
        UserError: naming each field that is invalid.

    Example:
        >>> model, tokenizer = load_model_and_tokenizer("typst-nano", use_4bit=False)
        >>> record = {"starting_page": 1, "academic_year": "2025-26", "department": "Physics"}
        >>> record |= {"project_title": "Rain", "contents_txt": "It rains."}
        >>> type(inference_from_dict(model, tokenizer, record))
        <class 'str'>
    """
    return _generator(model, tokenizer).generate_one(dict(input_data)).source


def inference_from_json_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_file: str | Path, output_file: str | Path
) -> list[dict[str, Any]]:
    """Writes ``[{"input": {...}, "generated_output": "...", ...}]`` for a file of records, and returns it.

    Args:
        model: what `load_model_and_tokenizer` returned.
        tokenizer: likewise.
        input_file: one record, ``{"input": {...}}``, or a list of such.
        output_file: the JSON list; results of these records that it already has are retained.

    Example:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> model, tokenizer = load_model_and_tokenizer("typst-nano", use_4bit=False)
        >>> record = {"starting_page": 1, "academic_year": "2025-26", "department": "Physics"}
        >>> record |= {"project_title": "Rain", "contents_txt": "It rains."}
        >>> with TemporaryDirectory() as directory:
        ...     records = Path(directory) / "records.json"
        ...     count = records.write_text(json.dumps([record]))
        ...     (result,) = inference_from_json_file(model, tokenizer, records, Path(directory) / "documents.json")
        >>> result["input"]["project_title"]
        'Rain'
    """
    with Typesetter() as typesetter:
        return _generator(model, tokenizer, typesetter).generate_file(input_file, output_file)


def _generator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, typesetter: Typesetter | None = None
) -> Generator:
    about: dict[str, Any] = getattr(model, _LOADED, None) or getattr(tokenizer, _LOADED, {})
    if hasattr(model, "peft_config") and not about.get("identity", {}).get("adapters"):
        log.warning(
            "The prompt template that the model's adapter was trained with is not known: using ReportPrompt. With "
            "another template, documents are poor. Load model and adapter with load_model_and_tokenizer, or use "
            "typst_lit.Generator, which takes templates."
        )
        about = {}
    return Generator(model, tokenizer, typesetter=typesetter, **about)
