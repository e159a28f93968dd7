"""From a run's settings to a job that can be planned, and from the plan back to settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from peft import PeftConfig

from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UserError
from typst_lit.model.adapters import adapter_directory
from typst_lit.model.module import TypstModule
from typst_lit.planning.planner import DEVICES, GIB, Device, Job, Option, Predictor, choose

log = logging.getLogger(__name__)
# What a process holds beside its tensors: the CUDA context and the allocator's gaps; on the CPU, what fitting a model
# of next to no weights adds.
OUTSIDE_GIB = {"cuda": 0.8, "cpu": 0.03}
Overlay = dict[str, dict[str, Any]]  # settings by group


def device_of(name: str, gib: float | None = None) -> tuple[Device, torch.dtype]:
    """Returns a device by its name, with so much memory if it is given, and the precision it would train in.

    Raises:
        UserError: when there is none of this name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        bf16 = (properties.major, properties.minor) >= (8, 0)
        device = Device(properties.total_memory / GIB - OUTSIDE_GIB["cuda"], None, bf16)
    elif name == "cpu":
        device = Device(psutil.virtual_memory().available / GIB - OUTSIDE_GIB["cpu"], None, False)
    elif name in DEVICES:
        device = DEVICES[name]
    else:
        raise UserError(f"--device {name} is not known. Known: auto, cpu, {', '.join(DEVICES)}; or give --gib.")
    dtype = torch.float32 if name == "cpu" else torch.bfloat16 if device.bf16 else torch.float16
    if gib is not None:
        device = device._replace(gib=gib - OUTSIDE_GIB["cpu" if name == "cpu" else "cuda"])
    return device, dtype


def job_of(module: TypstModule, data: TypstDataModule, dtype: torch.dtype) -> Job:
    """Returns what a module and its data would fit. The data is read and tokenised; no weight is loaded."""
    data.tokenizer = data.tokenizer or module.tokenizer
    data.template = data.template or module.adapter_template  # no trainer is there yet to ask for it
    data.load(TrainerFn.FITTING)
    lengths, prompts = data.train_lengths
    labelled = float(1 - prompts.sum() / max(1, lengths.sum())) if data.completion_only_loss else 1.0
    adapter = module.adapter
    if module.adapter_path:
        adapter = PeftConfig.from_pretrained(str(adapter_directory(module.adapter_path)))
        adapter.inference_mode = False
    return Job(
        module.backbone.load_config(module.base_model, module.revision, module.trust_remote_code),
        adapter, module.use_4bit, int(data.length_limit or lengths.max()), float(lengths.mean()),
        min(1.0, max(0.05, labelled)), dtype,
    )  # fmt: skip


def overlay_of(option: Option, samples: int) -> Overlay:
    """Returns the settings of an option, with as many samples a step as before."""
    return {
        "model": {"gradient_checkpointing": option.policy},
        "data": {"batch_size": option.rows},
        "trainer": {"accumulate_grad_batches": samples // option.rows},
        "watchdog": {"out_of_memory": "split"},  # a prediction may be wrong
    }


def flags(overlay: Overlay) -> str:
    """Returns settings as they stand on a command line."""
    return " ".join(f"--{group}.{name} {value}" for group, values in overlay.items() for name, value in values.items())


def write_overlay(overlay: Overlay, path: Path) -> None:
    """Writes settings as a YAML file that ``--config`` takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(overlay, sort_keys=False), "utf-8")


def planned(module: TypstModule, data: TypstDataModule, trainer: Trainer) -> Overlay:
    """Returns the best settings for a run on the device it is on.

    Raises:
        UserError: when nothing fits.
    """
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.world_size > 1:
        raise UserError(
            "--plan auto: processes that share the host's memory would each plan with all of it. Run `typst-lit plan "
            "--gib ... --write plan.yaml` once, and give --config plan.yaml."
        )
    device, dtype = device_of("cpu" if on_cpu else "cuda")
    log.info("Planning for %.1f GiB ...", device.gib)
    samples = data.batch_size * trainer.accumulate_grad_batches
    best = choose(Predictor(job_of(module, data, dtype)).options(device), device, samples)
    overlay = overlay_of(best, samples)
    log.info("Plan: %s, for which %.1f GiB are predicted.", flags(overlay), best.peak / GIB)
    return overlay
