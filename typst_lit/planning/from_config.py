"""From a run's settings to what is planned, and from the plan back to settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UserError
from typst_lit.manifest import write_output
from typst_lit.model.adapters import load_adapter_config
from typst_lit.model.module import TypstModule
from typst_lit.model.preparation import TrainingSpec
from typst_lit.planning.planner import DEVICES, GIB, Device, FitSpec, Planner, PlanOption, best_option

log = logging.getLogger(__name__)
# What a process holds in addition to its tensors: the CUDA context and the allocator's gaps; on the CPU, what fitting a
# model of next to no weights adds.
OVERHEAD_GIB = {"cuda": 0.8, "cpu": 0.03}
OVERLAY_HINT = "Use another `write`, or `overwrite=true` to replace it."
Overlay = dict[str, dict[str, Any]]  # settings by group


def resolve_device(name: str, gib: float | None = None) -> tuple[Device, torch.dtype]:
    """Returns a device by its name, and the dtype it would train in.

    Args:
        name: auto, cuda, cpu, or one of ``DEVICES``.
        gib: its memory; by default what it has.

    Raises:
        UserError: when the name is unknown.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        bf16 = (properties.major, properties.minor) >= (8, 0)
        device = Device(properties.total_memory / GIB - OVERHEAD_GIB["cuda"], None, bf16)
    elif name == "cpu":
        device = Device(psutil.virtual_memory().available / GIB - OVERHEAD_GIB["cpu"], None, False)
    elif name in DEVICES:
        device = DEVICES[name]
    else:
        names = ", ".join(["auto", "cpu", *DEVICES])
        raise UserError(f"{name} is unknown.", setting="device", hint=f"Use one of {names}, or set `gib`.")
    dtype = torch.float32 if name == "cpu" else torch.bfloat16 if device.bf16 else torch.float16
    if gib is not None:
        device = device._replace(gib=gib - OVERHEAD_GIB["cpu" if name == "cpu" else "cuda"])
    return device, dtype


def fit_spec(module: TypstModule, data: TypstDataModule, dtype: torch.dtype) -> FitSpec:
    """Returns what a module would fit on its data. The data is read and tokenized; no weights are loaded."""
    data.tokenizer = data.tokenizer or module.tokenizer
    data.template = data.template or module.adapter_template  # there is no trainer yet to take it from
    data.load(TrainerFn.FITTING)
    lengths, prompt_lengths = data.train_lengths
    labeled_fraction = float(1 - prompt_lengths.sum() / max(1, lengths.sum())) if data.completion_only_loss else 1.0
    training = TrainingSpec(
        module.backbone.load_config(module.base_model, module.revision, module.trust_remote_code),
        load_adapter_config(module.adapter_path) if module.adapter_path else module.adapter,
        module.use_4bit,
        dtype,
        module.optimizer,
        module.liger,
    )
    return FitSpec(
        training,
        max_length=int(data.length_limit or lengths.max()),
        mean_length=float(lengths.mean()),
        labeled_fraction=min(1.0, max(0.05, labeled_fraction)),
    )


def plan_settings(option: PlanOption, samples_per_step: int) -> Overlay:
    """Returns the settings of an option, with as many samples per step as before."""
    return {
        "model": {"gradient_checkpointing": option.policy},
        "data": {"batch_size": option.batch_size},
        "trainer": {"accumulate_grad_batches": samples_per_step // option.batch_size},
        "watchdog": {"out_of_memory": "split"},  # a prediction may be wrong
    }


def format_settings(overlay: Overlay) -> str:
    """Returns settings as they are written in messages.

    >>> format_settings({"data": {"batch_size": 8}})
    '`data.batch_size=8`'
    """
    return " ".join(f"`{group}.{name}={value}`" for group, values in overlay.items() for name, value in values.items())


def write_overlay(overlay: Overlay, path: str | Path, overwrite: bool = False) -> None:
    """Writes settings as a YAML file that a run can be configured with.

    Raises:
        UserError: when the file belongs to the user, and ``overwrite`` is not set.
    """
    write_output(path, yaml.safe_dump(overlay, sort_keys=False).encode(), overwrite, hint=OVERLAY_HINT)


def plan_run(module: TypstModule, data: TypstDataModule, trainer: Trainer) -> Overlay:
    """Returns the best settings for a run on its device.

    Raises:
        UserError: when nothing fits.
    """
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.world_size > 1:
        raise UserError(
            "ranks that share the host's memory would each plan with all of it.",
            setting="plan",
            hint="Run `typst-lit plan --gib ... --write plan.yaml` once, and use `config=plan.yaml`.",
        )
    device, dtype = resolve_device("cpu" if on_cpu else "cuda")
    log.info("Planning for %.1f GiB ...", device.gib)
    samples_per_step = data.batch_size * trainer.accumulate_grad_batches
    option = best_option(Planner(fit_spec(module, data, dtype)).options(device), device, samples_per_step)
    overlay = plan_settings(option, samples_per_step)
    log.info("Plan: %s, with a predicted peak of %.1f GiB.", format_settings(overlay), option.peak_bytes / GIB)
    return overlay
