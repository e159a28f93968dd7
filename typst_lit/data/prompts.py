"""Prompt templates: from the fields of a record to the text that the model reads, in training and in generation."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from typst_lit.data.records import Field
from typst_lit.errors import UserError

CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_<]\w*>?)+")  # a class in a function has <locals> in its path


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
        return {"class_path": _class_path(type(self)), "init_args": arguments}

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


def registered_templates() -> dict[str, type[PromptTemplate]]:
    """Returns the templates whose classes exist in this process, by class path.

    Those are the templates of this module, of installed plugins, and of modules that the user has named or imported.

    >>> registered_templates()["typst_lit.data.prompts.FormatPrompt"] is FormatPrompt
    True
    """
    templates: dict[str, type[PromptTemplate]] = {}
    pending = PromptTemplate.__subclasses__()
    while pending:
        template_class = pending.pop(0)
        # A notebook cell that is run again defines its class again: the last one counts.
        templates[_class_path(template_class)] = template_class
        pending += template_class.__subclasses__()
    return templates


def import_template(class_path: str) -> type[PromptTemplate]:
    """Imports the template class that the user has named; from then on, it is registered.

    Its module is executed. Never call this with a class path that was read from an adapter.

    Raises:
        UserError: if it can't be imported, or is not a `PromptTemplate`.

    >>> import_template("typst_lit.data.prompts.ReportPrompt") is ReportPrompt
    True
    """
    module, _, name = class_path.rpartition(".")
    try:
        template_class = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything when it is executed
        problem = f"{class_path} can't be imported ({type(error).__name__}: {error})."
        hint = "Name a class with its module: my_module.MyTemplate."
        raise UserError(problem, setting="model.trust_template", hint=hint) from error
    if not (isinstance(template_class, type) and issubclass(template_class, PromptTemplate)):
        raise UserError(f"{class_path} is not a PromptTemplate.", setting="model.trust_template")
    return template_class


def template_from(description: object) -> PromptTemplate:
    """Returns the template that `PromptTemplate.describe` described. Nothing is imported: a file may be hostile.

    Raises:
        UserError: if its class is not registered, or does not accept the arguments.

    >>> template_from(FormatPrompt("{title}").describe()) == FormatPrompt("{title}")
    True
    """
    class_path = description.get("class_path") if isinstance(description, Mapping) else None
    if not isinstance(description, Mapping) or not CLASS_PATH.fullmatch(str(class_path)):
        raise UserError("its 'template' does not have the class path of a prompt template.")
    template_class = registered_templates().get(str(class_path))
    if template_class is None:
        raise UserError(
            f"the prompt template {class_path} is neither part of typst_lit nor of an installed plugin, and an "
            "adapter's files never import code.",
            hint=f"If you trust its module, name it: `model.trust_template={class_path}`.",
        )
    try:
        return template_class(**description.get("init_args", {}))
    except Exception as error:
        raise UserError(f"{class_path} can't be created with its saved arguments: {error}") from error


def _class_path(template_class: type[PromptTemplate]) -> str:
    return f"{template_class.__module__}.{template_class.__qualname__}"
