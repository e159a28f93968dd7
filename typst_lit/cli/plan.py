"""``typst-lit plan``: what fits, and the flags for it, with the same settings as `fit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from typst_lit.cli.fit import TypstCLI
from typst_lit.planning.from_config import device_of, flags, job_of, overlay_of, write_overlay
from typst_lit.planning.planner import DEVICES, GIB, POLICIES, ROWS, Device, Option, Predictor, choose


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
        module, data = self.model, self.datamodule
        job = job_of(module, data, dtype)
        samples = data.batch_size * self.trainer.accumulate_grad_batches
        print(f"{module.base_model}, samples of {job.mean_length:.0f} tokens, at most {job.length}.")
        print(f"Device: {config.device}, {device.gib:.1f} GiB to use.\n")
        options = Predictor(job).options(device)
        print(table(options, device))
        overlay = overlay_of(choose(options, device, samples), samples)
        print(f"\nFor {samples} samples a step: {flags(overlay)}")
        if config.write:
            write_overlay(overlay, Path(config.write))
            print(f"Written to {config.write}: give it to fit with --config {config.write}, after the others.")


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
        times = ", ".join(f"{policy} {1000 * (by[policy, 1].seconds or 0):.0f} ms" for policy in POLICIES)
        lines.append(f"A sample of mean length, at 40 % of the device's matrix rate: {times}.")
    return "\n".join(lines)


def run(args: Sequence[str]) -> None:
    """Predicts what a fit would take at every batch size, and says which flags to give."""
    PlanCLI(args)
