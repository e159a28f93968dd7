"""``typst-lit plan``: which settings of `fit` fit into a device's memory."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser

from typst_lit.cli.fit import TypstCLI
from typst_lit.cli.messages import translate
from typst_lit.manifest import check_output
from typst_lit.planning.from_config import (
    OVERLAY_HINT,
    fit_spec,
    format_settings,
    plan_settings,
    resolve_device,
    write_overlay,
)
from typst_lit.planning.planner import BATCH_SIZES, DEVICES, GIB, POLICIES, Device, Planner, PlanOption, best_option


def plan(args: Sequence[str]) -> None:
    """Predict the memory of a fit for each batch size, and recommend settings."""
    PlanCLI(args).run()


class PlanCLI(TypstCLI):
    """The settings of `fit`, and a plan instead of the fit.

    Args:
        args: the arguments of the command line.
    """

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__("fit", args)

    def before_instantiate_classes(self) -> None:
        """Nothing is written to the run directory, so it may have another run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.prog = "typst-lit plan"
        names = ", ".join(DEVICES)
        parser.add_argument("--device", type=str, default="auto", help=f"The device: auto, cpu, or one of {names}.")
        parser.add_argument(
            "--gib", type=float | None, default=None, help="Memory to plan for in GiB, instead of the device's."
        )
        parser.add_argument(
            "--write", type=str | None, default=None, help="Write the recommended settings to this YAML file."
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Replace this file if another program wrote it."
        )

    def run(self) -> None:
        """Prints the plan, and writes it if asked to."""
        if self.config.write:
            check_output(self.config.write, self.config.overwrite, hint=OVERLAY_HINT)
        device, dtype = resolve_device(self.config.device, self.config.gib)
        spec = fit_spec(self.model, self.datamodule, dtype)
        samples = self.datamodule.batch_size * self.trainer.accumulate_grad_batches
        print(f"{self.model.base_model}, samples of {spec.mean_length:.0f} tokens, at most {spec.max_length}.")
        print(f"Device: {self.config.device}, {device.gib:.1f} GiB to use.\n")
        options = Planner(spec).options(device)
        print(table(options, device))
        overlay = plan_settings(best_option(options, device, samples), samples)
        print(f"\nFor {samples} samples per step: {translate(format_settings(overlay))}")
        if self.config.write:
            write_overlay(overlay, self.config.write, self.config.overwrite)
            print(f"Written to {self.config.write}: give it to fit with --config, after all other configurations.")


def table(options: Sequence[PlanOption], device: Device) -> str:
    """Returns the peaks as text: one row per policy of activation checkpointing, one column per batch size."""
    by_policy = {(option.policy, option.batch_size): option for option in options}
    lines = ["GiB at batch   " + "".join(f"{batch_size:>9}" for batch_size in BATCH_SIZES)]
    for policy in POLICIES:
        cells = []
        for batch_size in BATCH_SIZES:
            peak = by_policy[policy, batch_size].peak_bytes / GIB
            cells.append(f"{peak:.1f}{' ' if peak <= device.gib else '*'}")
        lines.append(f"{policy:<15}" + "".join(f"{cell:>9}" for cell in cells))
    lines.append("* does not fit")
    if device.tflops is not None:
        times = ", ".join(f"{policy} {1000 * (by_policy[policy, 1].seconds or 0):.0f} ms" for policy in POLICIES)
        lines.append(f"A sample of mean length, at 40 % of the device's matrix rate: {times}.")
    return "\n".join(lines)
