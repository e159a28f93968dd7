"""``typst-lit plan``: what fits, and the flags for it, with the same settings as `fit`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn
from transformers import AutoConfig

from typst_lit.errors import UserError
from typst_lit.planning.prediction import DEVICES, GIB, POLICIES, ROWS, Device, Job, Option, Predictor, choose
from typst_lit.training import TypstCLI

log = logging.getLogger(__name__)
CONTEXT_GIB = 0.8  # the CUDA context and the allocator's gaps


class PlanCLI(TypstCLI):
    """The settings of `fit`, and what it would take instead of the fit."""

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__("fit", args)

    def before_instantiate_classes(self) -> None:
        """Nothing is written to the run directory, so nothing there can be lost."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        names = ", ".join(DEVICES)
        parser.add_argument("--device", type=str, default="auto", help=f"auto, cpu, or one of: {names}.")
        parser.add_argument(
            "--gib", type=float | None, default=None, help="Memory to plan for, instead of the device's."
        )
        parser.add_argument(
            "--write", type=str | None, default=None, help="Writes the choice as an overlay, a YAML file."
        )

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[subcommand]
        device, dtype = device_of(config.device, config.gib)
        module, data, trainer = self.model, self.datamodule, self.trainer
        data.tokenizer = module.tokenizer
        data.load(TrainerFn.FITTING)
        lengths, prompts = data.train_lengths
        labelled = 1.0 if data.train_on_prompt else float(1 - prompts.sum() / max(1, lengths.sum()))
        job = Job(
            AutoConfig.from_pretrained(module.base_model, revision=module.revision),
            module.adapter, module.use_4bit, int(data.length_limit or lengths.max()), float(lengths.mean()),
            min(1.0, max(0.05, labelled)), dtype,
        )  # fmt: skip
        samples = data.batch_size * trainer.accumulate_grad_batches
        print(f"{module.base_model}, {len(lengths)} samples of {lengths.mean():.0f} tokens, at most {job.length}.")
        print(f"Device: {config.device}, {device.gib:.1f} GiB to use.\n")
        options = Predictor(job).options(device)
        print(table(options, device))
        best = choose(options, device, samples)
        overlay = overlay_of(best, samples)
        print(f"\nFor {samples} samples a step: " + " ".join(flags(overlay)))
        if config.write:
            path = Path(config.write)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(overlay, sort_keys=False), "utf-8")
            print(f"Written to {path}: give it to fit with --config {path}, after the others.")


def device_of(name: str, gib: float | None) -> tuple[Device, torch.dtype]:
    """Returns a device by its name, with so much memory if it is given, and the precision it would train in.

    Raises:
        UserError: when there is none of this name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        bf16 = (properties.major, properties.minor) >= (8, 0)
        device = Device(properties.total_memory / GIB - CONTEXT_GIB, None, bf16)
    elif name == "cpu":
        device = Device(psutil.virtual_memory().available / GIB, None, False)
    elif name in DEVICES:
        device = DEVICES[name]
    else:
        raise UserError(f"--device {name} is not known. Known: auto, cpu, {', '.join(DEVICES)}; or give --gib.")
    dtype = torch.float32 if name == "cpu" else torch.bfloat16 if device.bf16 else torch.float16
    return (device if gib is None else device._replace(gib=gib - (CONTEXT_GIB if name != "cpu" else 0))), dtype


def table(options: Sequence[Option], device: Device) -> str:
    """Returns the peaks as text: a row a policy, a column a batch size."""
    by = {(option.policy, option.rows): option for option in options}
    lines = ["GiB at batch   " + "".join(f"{rows:>9}" for rows in ROWS)]
    for policy in POLICIES:
        cells = []
        for rows in ROWS:
            peak = by[policy, rows].peak / GIB
            cells.append(f"{peak:.1f}{' ' if peak <= device.gib else '*'}")
        lines.append(f"{policy:<15}" + "".join(f"{cell:>9}" for cell in cells))
    lines.append("* does not fit")
    if device.tflops is not None:
        times = ", ".join(
            f"{policy} {1000 * by[policy, 1].seconds:.0f} ms"
            for policy in POLICIES
            if by[policy, 1].seconds is not None
        )
        lines.append(f"A sample of mean length, at 40 % of the device's matrix rate: {times}.")
    return "\n".join(lines)


def overlay_of(option: Option, samples: int) -> dict[str, dict[str, Any]]:
    """Returns the settings of an option, with as many samples a step as before."""
    return {
        "model": {"gradient_checkpointing": option.policy},
        "data": {"batch_size": option.rows},
        "trainer": {"accumulate_grad_batches": samples // option.rows},
    }


def flags(overlay: dict[str, dict[str, Any]]) -> list[str]:
    """Returns settings as they stand on a command line."""
    return [f"--{group}.{name} {value}" for group, values in overlay.items() for name, value in values.items()]


def run(args: Sequence[str]) -> None:
    """Predicts what a fit would take at every batch size, and says which flags to give."""
    PlanCLI(args)
