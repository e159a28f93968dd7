"""Flags that users know from elsewhere: Lightning's, transformers', and the constants of the guide's script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from typst_lit.cli.configs import read_configs
from typst_lit.cli.messages import translate
from typst_lit.errors import UsageError

# What to use instead of a setting that exists in Lightning, where something else sets it here
REPLACED = {
    "trainer.default_root_dir": "Use `run_dir`.",
    "default_root_dir": "Use `run_dir`.",
    "optimizer": "Use `model.optimizer`, `model.learning_rate` and `model.weight_decay`.",
    "lr_scheduler": "Use `model.schedule` and `model.warmup_steps`.",
    "return_predictions": "`predict` writes them to `predict.output`.",
    "trainer.resume_from_checkpoint": "Use `ckpt_path`.",
    "resume_from_checkpoint": "Use `ckpt_path=last`.",
    "output_dir": "Use `run_dir`.",
    "num_epochs": "Use `trainer.max_epochs`.",
    "num_train_epochs": "Use `trainer.max_epochs`.",
    "per_device_train_batch_size": "Use `data.batch_size`.",
    "gradient_accumulation_steps": "Use `trainer.accumulate_grad_batches`.",
    "max_grad_norm": "Use `trainer.gradient_clip_val`.",
    "max_seq_length": "Use `data.max_length`.",
    "lora_r": "Use `model.adapter.r`.",
    "lora_alpha": "Use `model.adapter.lora_alpha`.",
    "lora_dropout": "Use `model.adapter.lora_dropout`.",
    "lora_target_modules": "Use `model.adapter.target_modules`.",
    "max_tokens": "Use `generation.max_tokens`.",
}


def refuse_unknown_flags(args: Sequence[str], parser: ArgumentParser) -> None:
    """Raises a `UsageError` for a flag, or a setting in a configuration, of `REPLACED`, with what to use."""
    for arg in args:
        name = arg.partition("=")[0].removeprefix("--").removesuffix("+")
        hint = _replacement(name) if arg.startswith("--") else None
        if hint:
            raise UsageError(
                f"there is no option --{name}. {translate(hint)}\n`{parser.prog} --help` lists the options."
            )
    for path, content in read_configs(args):
        for name in _settings(content):
            hint = _replacement(name)
            if hint:
                raise UsageError(f"{path}: there is no setting '{name}'. {hint}")


def _replacement(name: str) -> str | None:
    """Returns what to use instead of a setting, if it is one of `REPLACED` or belongs to one."""
    return next((hint for known, hint in REPLACED.items() if name == known or name.startswith(f"{known}.")), None)


def _settings(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of the settings of a configuration that have a value."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}"
