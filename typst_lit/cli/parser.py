"""Typed functions as commands: the signature and the docstring of a function are its parser and its help."""

from __future__ import annotations

import difflib
import inspect
import re
from argparse import Action, HelpFormatter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from docstring_parser import parse
from jsonargparse import ActionYesNo, ArgumentParser, Namespace, set_parsing_settings

from typst_lit._compat.jsonargparse import allow_none, is_optional_bool, options
from typst_lit.cli.messages import Flags, translate, use_flags
from typst_lit.errors import UsageError

set_parsing_settings(unset_sentinel=True)  # so that null is an error for a setting that can't be None
FLAGS = {"use_4bit": "--4bit"}  # other names than the parameter's: those that users know
_UNKNOWN_OPTION = re.compile(r"(?:does not accept option|[Uu]nrecognized arguments:|not expected:?) '?-*([\w.-]+)")
_PARSER_KEY = re.compile(r'Parser key "([\w.+]+)":\s*')
_CLASS = re.compile(r"<class '([\w.]+)'>")


class CommandParser(ArgumentParser):
    """The parser of a small command.

    Flags are spelled in kebab-case; underscores are accepted as well. A parameter of type bool becomes a pair of flags,
    ``--pdf`` and ``--no-pdf``, even if it may be None, and one of type ``list[str]`` takes values separated by spaces.
    An error is a single message.
    """

    def add_argument(self, *args: Any, **kwargs: Any) -> Action:
        name = args[0]
        may_be_none = is_optional_bool(kwargs.get("action"))
        if name.startswith("--") and "." not in name:
            args = (FLAGS.get(name[2:], name.replace("_", "-")), *args[1:])
            kwargs.setdefault("dest", name[2:].replace("-", "_"))
            if kwargs.get("type") is bool or may_be_none:
                kwargs.pop("type", None)
                kwargs["action"] = ActionYesNo(no_prefix="no-")
        action = super().add_argument(*args, **kwargs)
        if may_be_none and isinstance(action, ActionYesNo):
            allow_none(action)
        return action

    def parse_args(self, args: Sequence[str], *more: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        use_flags(Flags.from_parser(self, args, has_groups=False))
        return super().parse_args(self._known_spelling(args), *more, **kwargs)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        return super().format_help(formatter).replace(", default: Unset", "")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(explain_parse_error(message, self))

    def _known_spelling(self, args: Iterable[str]) -> list[str]:
        """Returns arguments with the dashes and underscores that the parser's own flags have."""
        known = {flag.replace("_", "-"): flag for option in options(self) for flag in option.flags}
        spelled = []
        for arg in args:
            flag, separator, value = arg.partition("=")
            if flag.startswith("--"):
                flag = known.get(flag.replace("_", "-"), flag)
            spelled.append(flag + separator + value)
        return spelled


class Command:
    """A command of the command line, made of a typed function.

    Required parameters before ``*`` are positional arguments, all others are flags. The fields of a parameter that is a
    dataclass are flags without a prefix. Other classes are groups of flags: ``typesetting: Typesetter`` has
    ``--typesetting.timeout_s``. A group annotated as ``partial[Typesetter]`` is not instantiated yet.

    Args:
        function: does the work. The first paragraph of its docstring describes the command.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.types = get_type_hints(function)
        self.types.pop("return", None)

    def __call__(self, args: Sequence[str]) -> None:
        """Runs the command with the arguments of its command line."""
        parser = self.parser()
        config = parser.instantiate(parser.parse_args(args))
        self.function(**{name: self._value(name, config) for name in self.types})

    def parser(self) -> CommandParser:
        """Returns the command's parser."""
        description = inspect.getdoc(self.function) or ""
        description = description.partition("\n\nArgs:")[0].replace("\n\n", " ")
        parser = CommandParser(prog=f"typst-lit {self.name}", description=description)
        groups = {name for name, type_ in self.types.items() if _group_class(type_)}
        lists = _add_lists(parser, self.function)
        parser.add_function_arguments(self.function, as_group=False, as_positional=True, skip={*groups, *lists})
        for name in self.types:
            class_ = _group_class(self.types[name])
            if class_ is not None and is_dataclass(class_):
                parser.add_class_arguments(class_, as_group=False, skip={*_add_lists(parser, class_)})
            elif class_ is not None:
                parser.add_class_arguments(class_, name, instantiate=class_ is self.types[name])
        parser.usage = " ".join([parser.prog, *_positionals(self.function), "[--OPTION VALUE ...]"])
        return parser

    def _value(self, name: str, config: Namespace) -> Any:
        type_ = self.types[name]
        if isinstance(type_, type) and is_dataclass(type_):
            return type_(**{field.name: config[field.name] for field in fields(type_) if field.init})
        if get_origin(type_) is partial:
            return partial(get_args(type_)[0], **vars(config[name]))
        return config[name]


def _add_lists(parser: CommandParser, function: Callable[..., Any]) -> set[str]:
    """Adds the parameters of type ``list[str]``, as arguments with values separated by spaces, and returns their names.

    jsonargparse itself would want them as one value, ``[a, b]``.
    """
    names = {name for name, type_ in get_type_hints(function).items() if type_ == list[str]}
    for param in parse(inspect.getdoc(function) or "").params:
        if param.arg_name in names:
            is_required = inspect.signature(function).parameters[param.arg_name].default is inspect.Parameter.empty
            name = param.arg_name if is_required else f"--{param.arg_name}"
            parser.add_argument(name, type=str, nargs="*", default=[], help=param.description)
    return names


def _positionals(function: Callable[..., Any]) -> list[str]:
    """Returns the positional arguments of a command, as its usage has them."""
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name.upper() for parameter in parameters if parameter.kind != parameter.KEYWORD_ONLY]
    return [f"[{name} ...]" if get_type_hints(function)[name.lower()] == list[str] else name for name in names]


def _group_class(type_: Any) -> type | None:
    """Returns the class whose parameters become flags, if a parameter's type is such a class."""
    if get_origin(type_) is partial:
        return get_args(type_)[0]
    is_group = inspect.isclass(type_) and get_origin(type_) is None and type_.__module__.startswith("typst_lit.")
    return type_ if is_group else None


def explain_parse_error(message: str, parser: ArgumentParser) -> str:
    """Returns a parser's message with the nearest known options, where an unknown one was given."""
    message = _PARSER_KEY.sub(lambda match: translate(f"`{match[1]}`: "), message.strip())
    message = _CLASS.sub(r"\1", message).replace("Got value: None", "Got value: null")
    unknown = _UNKNOWN_OPTION.search(message)
    if unknown:
        suggestions = nearest_options(unknown[1], parser)
        if suggestions:
            message += f"\nDid you mean {' or '.join(suggestions)}?"
    return f"{message}\n`{parser.prog} --help` lists the options."


def nearest_options(name: str, parser: ArgumentParser) -> list[str]:
    """Returns the options of a parser that are spelled like a name, or end like it: ``batch_size``."""
    known = [flag.removeprefix("--") for option in options(parser) for flag in option.flags]
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    nearest += [flag for flag in known if flag.rpartition(".")[2] == name and flag not in nearest]
    return [f"--{flag}" for flag in nearest]
