"""Which model and adapters to generate with: found from their files alone. Importing this loads no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from typst_lit.contract.text_contract import TextContract
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.settings import GenerationSettings, adapter_settings
from typst_lit.model.locations import (
    CONFIG_FILE,
    METADATA_FILE,
    adapter_base,
    adapter_directory,
    adapter_key,
    adapter_metadata,
    adapter_template,
    damaged,
    model_location,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """Which model and adapters to generate with; nothing of them is loaded yet.

    Attributes:
        base_model: hub name, directory, or built-in name.
        use_4bit: whether the base model is loaded in 4 bits.
        merge: whether the adapter is merged into the base model.
        engine: what decodes: ``builtin`` or ``vllm``.
        adapters: the adapters' directories, by name.
        templates: the prompt template of each adapter, by its name; of None for a model without adapters.
        contracts: the text contract of each, likewise; None where it is not known.
        adapter_settings: the generation settings that each brings, likewise.
        identity: all this as plain values, which change when the weights do.
    """

    base_model: str
    use_4bit: bool
    merge: bool
    engine: str
    adapters: dict[str, Path]
    templates: dict[str | None, PromptTemplate]
    contracts: dict[str | None, TextContract | None]
    adapter_settings: dict[str | None, GenerationSettings]
    identity: dict[str, Any]

    def template(self, adapter: str | None = None) -> PromptTemplate:
        """Returns the prompt template of an adapter, by default of the default adapter.

        Raises:
            UserError: when no adapter has this name.
        """
        return self.templates[resolve_adapter(self.templates, adapter)]

    def settings(self, settings: GenerationSettings | None = None, adapter: str | None = None) -> GenerationSettings:
        """Returns what settings become with an adapter, by default with the default adapter.

        Raises:
            UserError: when no adapter has this name.
        """
        own_settings = self.adapter_settings[resolve_adapter(self.adapter_settings, adapter)]
        return (settings or GenerationSettings()).with_defaults(own_settings)


def resolve_model(
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    base_model: str | None = None,
    use_4bit: bool = True,
    merge: bool = False,
    engine: str = "builtin",
    trust_template: str | None = None,
) -> ModelSpec:
    """Finds the adapters and their base model; see `Generator.load` for the arguments.

    Raises:
        UserError: when an adapter does not exist, or no model is named.
    """
    paths = adapter if isinstance(adapter, Mapping) else {} if adapter is None else {"default": adapter}
    adapters = {name: adapter_directory(path) for name, path in paths.items()}
    first = next(iter(adapters.values()), None)
    base = base_model or (adapter_base(first) if first else None)
    if base is None:
        raise UserError(
            f"{first}: the adapter does not name its base model." if first else "no model is named.",
            hint="Name one with `model.base_model`." if first else "Name an adapter (`model`) or a `model.base_model`.",
        )
    if first and not base_model:
        log.info("%s", describe_base_model(base, first))
    if merge and (len(adapters) != 1 or use_4bit):
        raise UserError(
            "merging needs a single adapter, and 16-bit weights: in 4 bits, the added weights would be lost.",
            setting="merge",
            hint="Use `model.use_4bit=false`.",
        )
    if merge and engine != "builtin":
        raise UserError(
            f"`engine={engine}` does not merge adapters.", setting="merge", hint="Export a merged model first."
        )
    for path in adapters.values():
        trained_on = adapter_base(path)
        if trained_on and trained_on != base:
            log.warning("The adapter %s was trained on %s; it is loaded on %s.", path, trained_on, base)
    templates: dict[str | None, PromptTemplate] = {
        name: _template(path, trust_template) for name, path in adapters.items()
    }
    # a fully fine-tuned or merged model may have its template and the rest
    directories: dict[str | None, Path] = dict(adapters.items()) or {None: Path(base)}
    templates = templates or {None: adapter_template(Path(base), trust_template) or ReportPrompt()}
    if merge:
        directories = {None: next(iter(directories.values()))}
        templates = {None: next(iter(templates.values()))}
    contracts = {name: adapter_metadata(path).contract for name, path in directories.items()}
    own_settings = {name: stored_settings(path) for name, path in directories.items()}
    identity = model_identity(base, use_4bit, adapters, merge, engine)
    for path, contract in zip(directories.values(), contracts.values(), strict=True):
        if contract is not None and contract.typst_version != (installed := version("typst")):
            log.warning(
                "The text contract of %s was learned with Typst %s; %s is installed. To learn it again:\n"
                "  typst-lit contract --adapter %s --data.path PAIRS",
                path,
                contract.typst_version,
                installed,
                path,
            )
    return ModelSpec(base, use_4bit, merge, engine, adapters, templates, contracts, own_settings, identity)


def stored_settings(directory: Path, max_completion_tokens: int | None = None) -> GenerationSettings:
    """Returns the generation settings that an adapter or a model brings.

    Args:
        directory: of the adapter or the model.
        max_completion_tokens: number of tokens of the longest training completion; by default the stored one.

    Raises:
        UserError: when its file is damaged.
    """
    metadata = adapter_metadata(directory)
    try:
        return adapter_settings(metadata.generation, max_completion_tokens or metadata.max_completion_tokens)
    except UserError as error:
        raise damaged(directory / METADATA_FILE, error) from error


def model_identity(
    base_model: str, use_4bit: bool, adapters: Mapping[str, Path], merge: bool = False, engine: str = "builtin"
) -> dict[str, Any]:
    """Returns a model and its adapters as plain values, which change when the weights do; see `ModelSpec`."""
    return {
        "base_model": base_model,
        "use_4bit": use_4bit,
        "merge": merge,
        "adapters": {name: adapter_key(path) for name, path in adapters.items()},
        **({} if engine == "builtin" else {"engine": engine}),
    }


def describe_base_model(base_model: str, adapter: Path) -> str:
    """Returns one line: which base model an adapter names, and where it is loaded from."""
    origin = model_location(base_model)
    location = {
        "hub": f"it is downloaded from https://huggingface.co/{base_model}",
        "cache": "it is in the cache of the Hugging Face hub",
        "directory": "a directory of this machine",
        "package": "it is part of typst_lit",
    }[origin]
    source = f"{adapter / CONFIG_FILE} names the base model {base_model}"
    return f"{source}: {location}. `model.base_model` chooses another one."


def _template(adapter: Path, trust_template: str | None) -> PromptTemplate:
    template = adapter_template(adapter, trust_template)
    if template is None:
        template = ReportPrompt()
        log.warning(
            "%s does not say with which prompt template it was trained (it has no typst_lit.json): using %s. With "
            "another template, its documents would be poor.",
            adapter,
            type(template).__name__,
        )
    return template


def resolve_adapter(names: Iterable[str | None], adapter: str | None) -> str | None:
    """Returns the name of the adapter to use, the first one by default; None where there are no adapters.

    Raises:
        UserError: when no adapter has this name.
    """
    names = list(names)
    if adapter is None:
        return names[0]
    if adapter not in names:
        available = ", ".join(name for name in names if name is not None)
        raise UserError(f"there is no adapter '{adapter}'; there is: {available or 'none'}.", setting="adapter")
    return adapter


def provenance(
    identity: Mapping[str, Any],
    adapter: str | None,
    template: PromptTemplate,
    settings: GenerationSettings,
    max_attempts: int,
    compiles: bool,
) -> dict[str, Any]:
    """Returns what documents depend on in addition to their records, as plain values.

    Args:
        identity: of the model: `ModelSpec.identity`.
        adapter: the name of the adapter; None for the default one.
        template: its prompt template.
        settings: how to sample, with those of the adapter.
        max_attempts: attempts per document.
        compiles: whether documents are compiled.
    """
    return {
        **identity,
        "adapter": adapter,
        "template": template.describe(),
        **{f"generation.{key}": value for key, value in settings.values().items()},
        "attempts": max_attempts,
        "compile": compiles,
    }
