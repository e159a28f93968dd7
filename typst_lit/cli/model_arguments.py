"""The arguments of every small command that generates: which model, and how its documents are finished."""

from __future__ import annotations

from dataclasses import dataclass, field

from typst_lit.errors import UserError
from typst_lit.inference.settings import DEFAULT_BATCH_SIZE, GenerationSettings
from typst_lit.typesetting.typesetter import Typesetter

# To mypy the same as TYPE_CHECKING, whose imports jsonargparse would execute: transformers takes seconds.
MYPY = False
if MYPY:
    from typst_lit.inference.generator import Generator
    from typst_lit.inference.model_spec import ModelSpec


@dataclass(frozen=True)
class ModelArguments:
    """Which model generates, and how its documents are finished.

    Args:
        model: Directory of the adapter, or of a run. Several as NAME=DIRECTORY; the first is the default.
        base_model: Hub name, directory, or a built-in name; by default what the adapter names.
        use_4bit: Load the base model in 4 bits (NF4).
        merge: Merge the adapter into the base model, which is faster; needs --no-4bit.
        attempts: Maximum number of attempts at a document, until it is clean.
        batch_size: Number of documents that are generated concurrently.
        compile: Compile each document, and repair what almost compiles.
        trust_template: Class path of the adapter's prompt template, my_module.MyTemplate, if it is neither part of
            typst_lit nor of a plugin: the module is imported.
    """

    model: list[str] = field(default_factory=list)
    base_model: str | None = None
    use_4bit: bool = True
    merge: bool = False
    attempts: int = 1
    batch_size: int = DEFAULT_BATCH_SIZE
    compile: bool = True
    trust_template: str | None = None

    @property
    def adapters(self) -> dict[str, str] | None:
        """The directory of each adapter by its name; None without adapters."""
        adapters = {}
        for item in self.model:
            name, directory = item.split("=", 1) if "=" in item else ("default", item)
            adapters[name] = directory
        if len(adapters) < len(self.model):
            raise UserError(
                "several adapters need a name each.", setting="model", hint="Give reports=DIRECTORY letters=DIRECTORY."
            )
        return adapters or None

    def validate(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            UserError: when a value is out of range, or an adapter does not exist.
        """
        from typst_lit.model.locations import adapter_directory

        self.check_numbers()
        for path in (self.adapters or {}).values():
            adapter_directory(path)

    def check_numbers(self) -> None:
        """Checks the values that are numbers; `validate` does as well, but imports more.

        Raises:
            UserError: when one is out of range.
        """
        for name in ("attempts", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"must be 1 or more, not {getattr(self, name)}.", setting=name)

    def resolve(self, engine: str = "builtin") -> ModelSpec:
        """Returns which model and adapters these are; nothing of them is loaded.

        Raises:
            UserError: when an adapter does not exist, or no model is named.
        """
        from typst_lit.inference.model_spec import resolve_model

        return resolve_model(self.adapters, self.base_model, self.use_4bit, self.merge, engine, self.trust_template)

    def load(self, generation: GenerationSettings, typesetter: Typesetter, spec: ModelSpec | None = None) -> Generator:
        """Loads the generator.

        Args:
            generation: how to sample.
            typesetter: what compiles.
            spec: what `resolve` returned, if it was called before.

        Raises:
            UserError: when a model or adapter does not exist, or they do not fit.
        """
        from typst_lit.inference.generator import Generator

        return Generator.from_spec(
            spec or self.resolve(), generation, typesetter if self.compile else None, self.attempts, self.batch_size
        )
