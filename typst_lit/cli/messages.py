"""Settings in messages, written as flags of the command that runs.

Library code knows no flags. Its errors and log records name settings as Python and YAML have them, dotted and in
backquotes: ```data.max_length```, or with a value ```data.max_length=4096```. Here they become what the user can
type: ``--data.max_length 4096`` for the commands of LightningCLI, ``--max-tokens 4096`` for the small commands, with
underscores if the user's own flags have them. A setting for which the running command has no flag stays as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_SETTING = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)*\+?)(?:=([^`]*))?`")
# Groups whose settings are flags without a prefix in the small commands: `generation.max_tokens` is --max-tokens there
_FLAT_GROUPS = ("model", "generation")
# Settings that have another name in the small commands
_OTHER_NAMES = {
    "model.adapter_path": "model",
    "data.predict_path": "input",
    "predict.output": "output",
    "predict.overwrite": "overwrite",
    "predict.typ_dir": "typ_dir",
    "eval.report_dir": "output_dir",
    "eval.overwrite": "overwrite",
    "max_attempts": "attempts",
}
_GROUPED_NAMES = {name: setting for setting, name in reversed(_OTHER_NAMES.items())}
# Settings of fit whose name is that of another setting in the small commands: --adapter chooses one by its name there
_FIT_ONLY = ("model.adapter", "model.optimizer", "model.metrics")


@dataclass(frozen=True)
class Flags:
    """The flags of a command.

    Attributes:
        by_setting: the flag of each setting, with its dashes.
        switches: the flags for true and for false of the settings whose flag takes no value.
        has_groups: whether settings are typed dotted, as LightningCLI has them.
    """

    by_setting: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    has_groups: bool = True

    @classmethod
    def from_parser(cls, parser: ArgumentParser, args: Sequence[str] = (), has_groups: bool = True) -> Flags:
        """Returns the flags of a parser, spelled as the user's own arguments are.

        Args:
            parser: the parser of the command.
            args: what the user typed.
            has_groups: whether settings are typed dotted, as LightningCLI has them.
        """
        from typst_lit._compat.jsonargparse import options

        snake_case = any(re.match(r"--[^.=]*_", arg) for arg in args)
        by_setting, switches = {}, {}
        for option in options(parser):
            if option.is_group:
                continue
            flags = [flag for flag in option.flags if flag.startswith("--")] or list(option.flags)
            if not has_groups and "." not in option.name:
                flags = [_spell(flag, snake_case) for flag in flags]
            by_setting[option.name] = flags[0]
            if option.is_switch:
                switches[option.name] = (flags[0], next(flag for flag in flags if flag.startswith("--no")))
        return cls(by_setting, switches, has_groups)

    def translate(self, message: str) -> str:
        """Returns a message with its settings as flags."""
        return _SETTING.sub(lambda match: self.flag(match[1], match[2]) or match[0], message)

    def flag(self, setting: str, value: str | None = None) -> str | None:
        """Returns what to type for a setting, or None where the command has no flag for it."""
        name = self._option(setting)
        if name is None:
            return None
        if name in self.switches and value is not None:
            return self.switches[name][value.lower() in ("false", "no")]
        # The arguments of a class are typed after its name: --model.adapter.r, --trainer.callbacks+
        flag = self.by_setting[name]
        if self.has_groups and setting.startswith(name):
            flag += setting.removeprefix(name)
        return flag if value is None else f"{flag} {shlex.quote(value)}"

    def _option(self, setting: str) -> str | None:
        """Returns the name of the option that a setting belongs to."""
        if self.has_groups:
            name = setting.removesuffix("+")
            if name not in self.by_setting:
                name = _GROUPED_NAMES.get(name, name)
            while name not in self.by_setting and "." in name:
                name = name.rpartition(".")[0]
        elif setting in self.by_setting or setting in _OTHER_NAMES:
            name = _OTHER_NAMES.get(setting, setting)
        else:
            group, _, name = setting.partition(".")
            if group not in _FLAT_GROUPS or setting in _FIT_ONLY:
                return None
        return name if name in self.by_setting else None


_current = Flags()


def use_flags(flags: Flags) -> None:
    """Sets the flags that messages name from now on: those of the command that runs."""
    global _current
    _current = flags


def translate(message: object) -> str:
    """Returns a message of the library with its settings as flags of the command that runs."""
    return _current.translate(str(message))


def _spell(flag: str, snake_case: bool) -> str:
    name = flag.removeprefix("--")
    return "--" + (name.replace("-", "_") if snake_case and not name.startswith("no-") else name.replace("_", "-"))
