"""Flags that users know from elsewhere: Lightning's, transformers', and the constants of the guide's script."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

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
    """Raises a `UsageError` for a flag of `REPLACED`, with the flag to use."""
    for arg in args:
        name = arg.partition("=")[0].removeprefix("--").removesuffix("+")
        if not arg.startswith("--"):
            continue
        hint = next((REPLACED[known] for known in REPLACED if name == known or name.startswith(f"{known}.")), None)
        if hint:
            raise UsageError(
                f"there is no option --{name}. {translate(hint)}\n`{parser.prog} --help` lists the options."
            )
