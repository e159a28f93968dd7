"""``fit --help``: the settings that people change, on two screens; ``fit --help all`` lists every setting."""

from __future__ import annotations

import textwrap
from typing import Any

from jsonargparse import ArgumentParser, Namespace, Unset

from typst_lit._compat.jsonargparse import options

WIDTH = 100
# The settings that people change, in the order in which they meet them. Arguments of the adapter's class have no help
# of their own in the parser.
COMMON_SETTINGS = {
    "config": "A configuration: a YAML file, or one of `typst-lit configs`. Several are merged in their order, and "
    "flags win over all.",
    "data.path": "",
    "data.test_path": "",
    "data.predict_path": "",
    "model.base_model": "",
    "model.adapter_path": "",
    "run_dir": "",
    "ckpt_path": "Resume from a checkpoint: a file or directory, or `last` for the newest of the run directory.",
    "plan": "",
    "trainer.max_epochs": "Number of passes over the training data.",
    "data.batch_size": "",
    "trainer.accumulate_grad_batches": "Number of batches per optimizer step.",
    "data.max_length": "",
    "model.learning_rate": "Peak of the learning rate, after the warm-up.",
    "model.warmup_steps": "",
    "model.weight_decay": "Weight decay, which is not applied to norms and biases.",
    "model.adapter.r": "Rank of the LoRA matrices.",
    "model.adapter.lora_alpha": "Scale of the LoRA update, alpha / r; twice the rank is usual.",
    "model.adapter.lora_dropout": "Dropout in front of the LoRA matrices.",
    "model.adapter.target_modules": "Which layers get an adapter: attention, attention+mlp, all-linear, or a list of "
    "names.",
    "model.use_4bit": "",
    "model.gradient_checkpointing": "",
    "generation.max_tokens": "",
    "generation.temperature": "",
    "generation.sampling": "",
    "predict.output": "",
    "device": "",
    "gib": "",
    "write": "",
}
GROUPS = {
    "trainer": "Lightning's Trainer: devices, precision, callbacks, number of steps.",
    "model": "The module: base model, adapter, optimizer, schedule, metrics, kernels.",
    "data": "The data module: sources, template, split, lengths, packing, loaders.",
    "generation": "How documents are sampled, in evaluation and prediction.",
    "eval": "Generating and scoring documents during validation.",
    "predict": "What predict writes.",
    "checkpoint": "Resumable checkpoints.",
    "adapter_export": "Which adapters are exported.",
    "contract": "What the texts of the training pairs have in common.",
    "early_stopping": "When to stop early.",
    "watchdog": "Non-finite losses, loss spikes, and running out of memory.",
    "memory_profiler": "Reports of peak memory.",
    "typesetting": "The limits of each document that is compiled.",
}
TRAINING_ONLY = (
    "plan", "trainer.", "model.learning_rate", "model.warmup", "model.weight", "model.adapter.", "model.gradient",
)  # fmt: skip
NOT_PREDICTING = ("data.path", "data.max_length", "ckpt_path")


def settings_help(parser: ArgumentParser) -> str:
    """Returns the short help of a command of LightningCLI."""
    known = {option.name: option for option in options(parser)}
    defaults = parser.get_defaults()
    lines = [
        f"usage: {parser.prog} [--config CONFIG] [--SETTING VALUE ...]",
        "",
        "The settings that are changed most often; see below for all others.",
        "",
    ]
    for name, text in COMMON_SETTINGS.items():
        parent = name if name in known else name.rpartition(".")[0]
        if parent not in known or (known[parent].is_group and name not in known) or _is_irrelevant(name, parser):
            continue
        lines += _entry(name, text or known[name].help, _default(name, defaults))
    lines += ["", "Groups of settings:"]
    names = [name for name in GROUPS if any(option.startswith(f"{name}.") for option in known)]
    for name in names:
        count = sum(option.startswith(f"{name}.") and not known[option].is_group for option in known)
        lines.append(f"  {'--' + name + '.*':<22} {count:>3}  {GROUPS[name]}")
    lines += ["", f"`{parser.prog} --help all` lists every setting with its type and default.", ""]
    return "\n".join(lines)


def _is_irrelevant(name: str, parser: ArgumentParser) -> bool:
    """Returns whether a setting changes nothing in the parser's command, or is another command's."""
    command = (parser.prog or "").rpartition(" ")[2]
    is_fit = command in ("fit", "plan")
    if name in ("data.test_path", "data.predict_path", "predict.output"):
        return {"data.test_path": "test"}.get(name, "predict") != command
    if name.startswith("generation."):
        return command in ("plan", "validate")
    return (not is_fit and name.startswith(TRAINING_ONLY)) or (command == "predict" and name in NOT_PREDICTING)


def _entry(name: str, text: str, default: str) -> list[str]:
    text = text.replace("``", "`").rstrip(".")
    if not text.startswith("auto:"):
        text = text[:1].upper() + text[1:]
    flag = f"  --{name}"
    wrapped = textwrap.wrap(f"{text}{default}", WIDTH - 36) or [""]
    first = [f"{flag:<35} {wrapped[0]}"] if len(flag) < 35 else [flag, " " * 36 + wrapped[0]]
    return [*first, *(" " * 36 + line for line in wrapped[1:])]


def _default(name: str, defaults: Namespace) -> str:
    group, _, argument = name.rpartition(".")
    value: Any = defaults.get(name)
    if value is None and group == "model.adapter":
        value = defaults.get(f"{group}.init_args.{argument}")
    if value is None or value is Unset or isinstance(value, Namespace | list):
        return ""
    return f" [{str(value).lower() if isinstance(value, bool) else value}]"
