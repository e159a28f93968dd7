"""Prompt templates: from the fields of a record to the text that the model reads, in training and in generation."""

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
    r"""Turns the fields of a record into a prompt.

    A subclass has ``fields`` and a method ``render``. The arguments of its constructor are its configuration, which is
    saved with every adapter: they must be plain values (text, numbers, lists, mappings), and attributes of the same
    names, so that `describe` can return them.

    >>> class Letter(PromptTemplate):
    ...     fields = (Field("name"), Field("text"))
    ...
    ...     def __init__(self, greeting: str = "Dear") -> None:
    ...         self.greeting = greeting
    ...
    ...     def render(self, fields):
    ...         return f"{self.greeting} {fields['name']},\n{fields['text']}\n"
    >>> Letter("Hello").render({"name": "Ada", "text": "Thanks."})
    'Hello Ada,\nThanks.\n'
    """

    fields: Sequence[Field]

    @abstractmethod
    def render(self, fields: Mapping[str, Any]) -> str:
        """Returns the prompt of one record. The completion, its Typst source, follows without a separator."""

    @property
    def body_field(self) -> str:
        """The text field that is truncated if a record is too long: the last one, unless a subclass chooses another."""
        return [field.name for field in self.fields if field.kind == "text"][-1]

    def describe(self) -> dict[str, Any]:
        """Returns the class path and the arguments, from which `template_from` makes an equal template."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        arguments = {name: getattr(self, name) for name in names}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptTemplate) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(json.dumps(self.describe(), sort_keys=True))


class ReportPrompt(PromptTemplate):
    """The prompt for a chapter of a report: page, year, department and title, then the chapter's text.

    >>> [field.name for field in ReportPrompt().fields]
    ['starting_page', 'academic_year', 'department', 'project_title', 'contents_txt']
    """

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
        header = "\n".join(f"{field.name}: {fields[field.name]}" for field in self.fields[:-1])
        return (
            "Write the Typst source of this chapter in the house style. Keep its text word for word.\n\n"
            f"{header}\n\n### Text\n{fields['contents_txt'].strip()}\n\n### Typst\n"
        )


class FormatPrompt(PromptTemplate):
    r"""A prompt from the configuration: text with ``{field}`` where the value of a field goes.

    Args:
        text: the prompt; every ``{name}`` in it becomes a field of the record, ``{{`` and ``}}`` are plain braces.
        numbers: the names of the fields that are integers; all others are text.
        optional: the names of the fields that may be missing or blank.
        body: the text field to truncate if a record is too long; by default the last one in the text.

    >>> template = FormatPrompt("{title}, page {page}\n\n{body}\n\n### Typst\n", numbers=["page"])
    >>> template.render({"title": "Night buses", "page": 3, "body": "The last bus leaves at ten."})
    'Night buses, page 3\n\nThe last bus leaves at ten.\n\n### Typst\n'
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
            raise UserError(f"the text has an unmatched brace: {error}.", setting="data.template") from error
        names = list(dict.fromkeys(name for name, _, _ in parts if name is not None))
        if not names or not all(name.isidentifier() for name in names) or any(s or c for _, s, c in parts):
            raise UserError("the text must have at least one field, each as {name}.", setting="data.template")
        self.fields = tuple(
            Field(name, "number" if name in self.numbers else "text", required=name not in self.optional)
            for name in names
        )
        texts = [field.name for field in self.fields if field.kind == "text"]
        unknown = {*self.numbers, *self.optional} - set(names)
        if unknown:
            raise UserError(
                f"the text has no field {', '.join(sorted(unknown))}; its fields are {', '.join(names)}.",
                setting="data.template",
            )
        if not texts or (body and body not in texts):
            problem = f"'{body}' is not one of its text fields" if texts else "the text has no text field"
            raise UserError(f"{problem}; its fields are {', '.join(names)}.", setting="data.template")

    @property
    def body_field(self) -> str:
        return self.body or super().body_field

    def render(self, fields: Mapping[str, Any]) -> str:
        return self.text.format(**{field.name: fields[field.name] for field in self.fields})


def template_from(description: Mapping[str, Any]) -> PromptTemplate:
    """Returns the template that `PromptTemplate.describe` described.

    Raises:
        UserError: if its class can't be imported, or is not a `PromptTemplate`.

    >>> template_from(FormatPrompt("{title}").describe()) == FormatPrompt("{title}")
    True
    """
    module, _, name = str(description.get("class_path", "")).rpartition(".")
    try:
        template_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the prompt template {module}.{name} can't be imported ({error}).",
            hint="Install its package, or choose another template with `data.template`.",
        ) from error
    if not (isinstance(template_class, type) and issubclass(template_class, PromptTemplate)):
        raise UserError(f"{module}.{name} is not a PromptTemplate.")
    return template_class(**description.get("init_args", {}))
