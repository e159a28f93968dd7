"""Where models and adapters are, and what their files say. Importing this loads neither torch nor PEFT."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from typst_lit.contract.text_contract import TextContract
from typst_lit.data.prompts import PromptTemplate, import_template, template_from
from typst_lit.errors import UserError
from typst_lit.files import cache_key

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
METADATA_FILE = "typst_lit.json"
MAX_BYTES = 1 << 20  # of a configuration
DAMAGED_HINT = "Copy the adapter's directory again, or use the `best` or `last` one next to it."
BUILT_IN = {"typst-nano": "model/nano"}  # the models in this package, and their directories
CONVERT_COMMAND = (  # weights_only: no code in the file is run
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('{directory}/adapter_model.bin', weights_only=True); "
    "s.save_file({{k: v.contiguous() for k, v in w.items()}}, '{directory}/adapter_model.safetensors')\""
)


def path_or_name(name: str) -> str:
    """Returns what transformers can load: the directory of a built-in model, any other name unchanged.

    >>> path_or_name("Qwen/Qwen3-1.7B")
    'Qwen/Qwen3-1.7B'
    """
    return str(files("typst_lit") / BUILT_IN[name]) if name in BUILT_IN else name


def model_location(name: str) -> Literal["package", "directory", "cache", "hub"]:
    """Returns where a base model is: in this package, a directory, the hub's cache on this machine, or on the hub only.

    >>> model_location("typst-nano")
    'package'
    """
    if name in BUILT_IN:
        return "package"
    if Path(name).expanduser().is_dir():
        return "directory"
    try:
        return "cache" if isinstance(try_to_load_from_cache(name, "config.json"), str) else "hub"
    except HFValidationError:
        return "hub"


def adapter_directory(directory: str | Path) -> Path:
    """Returns the directory of an adapter: the given one, or ``best`` or ``last`` in it, or in a run's ``adapter``.

    Raises:
        UserError: when there is no adapter, or only one in a format that can run code when it is loaded.
    """
    path = Path(directory).expanduser()
    for candidate in (path, path / "best", path / "last", path / "adapter" / "best", path / "adapter" / "last"):
        if (candidate / CONFIG_FILE).is_file():
            if (candidate / WEIGHTS_FILE).is_file():
                return candidate
            raise UserError(
                f"{candidate} has no {WEIGHTS_FILE}. Adapters are loaded from safetensors only, because a "
                ".bin file can run code when it is loaded.",
                setting="model.adapter_path",
                hint=f"To convert one:\n  {CONVERT_COMMAND.format(directory=candidate)}",
            )
    if not path.is_dir():
        raise UserError(f"{directory} is not a directory.", setting="model.adapter_path")
    names = ", ".join(sorted(file.name for file in path.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{directory} contains no adapter (an adapter_config.json and its weights), but {names}.",
        setting="model.adapter_path",
    )


def model_directory(directory: str | Path) -> Path | None:
    """Returns the directory of a fully fine-tuned model, found as in `adapter_directory`, or None."""
    path = Path(directory).expanduser()
    for candidate in (path, path / "best", path / "last", path / "model" / "best", path / "model" / "last"):
        weights = any(candidate.glob("model*.safetensors"))
        if weights and (candidate / "config.json").is_file() and not (candidate / CONFIG_FILE).is_file():
            return candidate
    return None


def adapter_base(directory: Path) -> str | None:
    """Returns the name of the base model that an adapter was trained on, if its configuration has it."""
    try:
        name = read_json(directory / CONFIG_FILE).get("base_model_name_or_path")
    except UserError:
        return None
    return name if name and isinstance(name, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        UserError: when the file has no JSON object, or is too large or too deeply nested.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise damaged(path, f"it has more than {MAX_BYTES >> 20} MiB")
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, "it is not a JSON object")
    return content


def damaged(path: Path, reason: object) -> UserError:
    """Returns the error for a file of an adapter that can't be used."""
    return UserError(f"{path}: is damaged ({reason}).", hint=DAMAGED_HINT)


def adapter_key(directory: Path) -> str:
    """Returns a key that changes whenever an adapter's weights are written again."""
    weights = (directory / WEIGHTS_FILE).stat()
    return cache_key(str(directory), weights.st_size, weights.st_mtime_ns)


@dataclass(frozen=True)
class AdapterMetadata:
    """What an adapter's files say of its training, in addition to the prompt template.

    Attributes:
        generation: the generation settings that the run's configuration gave, by name.
        max_completion_tokens: number of tokens of the longest training completion, with EOS; None if it is not known.
        contract: what the texts of the training pairs have in common; None if it is not known.

    Example:
        >>> AdapterMetadata({"temperature": 0.2}, max_completion_tokens=900).to_json()
        {'generation': {'temperature': 0.2}, 'max_completion_tokens': 900}
    """

    generation: dict[str, Any] = field(default_factory=dict)
    max_completion_tokens: int | None = None
    contract: TextContract | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns what is known as plain values."""
        values = {
            "generation": self.generation,
            "max_completion_tokens": self.max_completion_tokens,
            "contract": self.contract and self.contract.to_json(),
        }
        return {name: value for name, value in values.items() if value}


def adapter_metadata(directory: Path) -> AdapterMetadata:
    """Returns what the files of an adapter say of its training; older adapters, and other models, say nothing.

    Args:
        directory: of the adapter, or of a model that was trained or merged.

    Raises:
        UserError: when a value is damaged.
    """
    file = directory / METADATA_FILE
    if not file.is_file():
        return AdapterMetadata()
    content = read_json(file)
    generation, max_tokens, contract = (content.get(key) for key in ("generation", "max_completion_tokens", "contract"))
    if not isinstance(generation, dict | None):
        raise damaged(file, "'generation' is not an object")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise damaged(file, "'max_completion_tokens' is not a positive integer")
    if not isinstance(contract, dict | None):
        raise damaged(file, "'contract' is not an object")
    try:
        text_contract = TextContract.from_json(contract) if contract else None
    except UserError as error:
        raise damaged(file, error.problem) from error
    return AdapterMetadata(generation or {}, max_tokens, text_contract)


def adapter_template(directory: Path, trust_template: str | None = None) -> PromptTemplate | None:
    """Returns the prompt template that an adapter was trained with, if it was saved by this package.

    Args:
        directory: of the adapter, or of a model that was trained or merged.
        trust_template: class path of a template whose module may be imported. Nothing else is.

    Raises:
        UserError: when the template can't be created.
    """
    if trust_template:
        import_template(trust_template)
    file = directory / METADATA_FILE
    if not file.is_file():
        return None
    try:
        return template_from(read_json(file).get("template"))
    except UserError as error:
        hint = error.hint or "Copy the adapter's directory again, or train with `data.template`."
        raise UserError(f"{file}: {error.problem}", hint=hint) from error
