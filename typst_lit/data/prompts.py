"""The one way from a record to the text that the model reads: the same object serves fit, predict and server."""

from __future__ import annotations

import importlib
import inspect
import json
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from typst_lit.data.records import Field
from typst_lit.errors import UserError


class PromptTemplate(ABC):
    """Turns the fields of a record into a prompt. The constructor is its configuration, kept beside every adapter.

    A subclass names its ``fields`` and writes ``render``. Constructor arguments must be plain values (text, numbers,
    lists, mappings) and be kept in attributes of the same name, so that `describe` can write them down.
    """

    fields: Sequence[Field]

    @abstractmethod
    def render(self, fields: Mapping[str, Any]) -> str:
        """Returns the prompt of one record. The completion, the Typst source, follows it directly."""

    @property
    def body_field(self) -> str:
        """The text field that is shortened where a record is too long: the last one, unless a subclass says other."""
        return [field.name for field in self.fields if field.kind == "text"][-1]

    def describe(self) -> dict[str, Any]:
        """Returns class path and arguments: what `template_from` needs to make an equal template."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        arguments = {name: getattr(self, name) for name in names}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptTemplate) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(json.dumps(self.describe(), sort_keys=True))


class ReportPrompt(PromptTemplate):
    """The prompt for a chapter of a report: page, year, department, title, then the chapter's text."""

    fields = (
        Field("starting_page", "number"),
        Field("academic_year"),
        Field("department"),
        Field("project_title"),
        Field("contents_txt"),
    )

    def __init__(self) -> None:
        pass

    def render(self, fields: Mapping[str, Any]) -> str:
        head = "\n".join(f"{field.name}: {fields[field.name]}" for field in self.fields[:-1])
        return (
            "Write the Typst source of this chapter in the house style. Keep its text word for word.\n\n"
            f"{head}\n\n### Text\n{fields['contents_txt'].strip()}\n\n### Typst\n"
        )


class FormatPrompt(PromptTemplate):
    """A prompt written in the configuration: text with ``{field}`` wherever a field's value goes.

    Args:
        text: the prompt; every ``{name}`` in it becomes a field of the record, ``{{`` and ``}}`` are plain braces.
        numbers: the names of the fields that are whole numbers; all others are text.
        optional: the names of the fields that may be missing or blank.
        body: the text field to shorten where a record is too long; by default the last one named in the text.
    """

    def __init__(
        self, text: str, numbers: Sequence[str] = (), optional: Sequence[str] = (), body: str | None = None
    ) -> None:
        self.text = text
        self.numbers = list(numbers)
        self.optional = list(optional)
        self.body = body
        try:
            parts = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(text)]
        except ValueError as error:
            raise UserError(f"data.template: the text has a brace out of place: {error}.") from error
        names = list(dict.fromkeys(name for name, _, _ in parts if name is not None))
        if not names or not all(name.isidentifier() for name in names) or any(s or c for _, s, c in parts):
            raise UserError("data.template: the text must name its fields as {name}, by plain names and at least one.")
        self.fields = tuple(
            Field(name, "number" if name in self.numbers else "text", required=name not in self.optional)
            for name in names
        )
        texts = [field.name for field in self.fields if field.kind == "text"]
        strangers = {*self.numbers, *self.optional} - set(names) | ({body} - set(texts) if body else set())
        if strangers or not texts:
            raise UserError(
                f"data.template: {', '.join(sorted(strangers)) or 'the text'} names no text field; "
                f"the fields are: {', '.join(names)}."
            )

    @property
    def body_field(self) -> str:
        return self.body or super().body_field

    def render(self, fields: Mapping[str, Any]) -> str:
        return self.text.format(**{field.name: fields[field.name] for field in self.fields})


def template_from(description: Mapping[str, Any]) -> PromptTemplate:
    """Makes the template that `PromptTemplate.describe` described.

    Raises:
        UserError: when its class can't be imported here, or is no `PromptTemplate`.
    """
    module, _, name = str(description.get("class_path", "")).rpartition(".")
    try:
        template_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the prompt template {module}.{name} can't be imported ({error}). Install the package that has it, "
            "or name another one with --data.template."
        ) from error
    if not (isinstance(template_class, type) and issubclass(template_class, PromptTemplate)):
        raise UserError(f"{module}.{name} is not a PromptTemplate.")
    return template_class(**description.get("init_args", {}))
