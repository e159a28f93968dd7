"""Saves the training loss of runs, from TensorBoard's events, as a table and a plot.

    python -m benchmarks.plot_loss OUTPUT RUN_DIR [RUN_DIR ...]

writes OUTPUT.csv (run, step, train_loss) and OUTPUT.png. Consecutive runs are drawn as one curve.
"""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.harness import OUTPUT_HINT, argument_parser
from typst_lit.manifest import check_output, write_output

STEPS_PER_POINT = 10


def loss_curve(run: Path) -> list[tuple[int, float]]:
    """Returns (step, mean train_loss of the steps up to it). Where a run was resumed, its later events count."""
    by_step: dict[int, float] = {}
    for version in sorted(run.glob("tensorboard/version_*"), key=lambda path: int(path.name.split("_")[1])):
        events = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
        by_step |= {event.step: event.value for event in events.Scalars("train_loss")}
    losses = [by_step[step] for step in sorted(by_step)]
    chunks = [losses[start : start + STEPS_PER_POINT] for start in range(0, len(losses), STEPS_PER_POINT)]
    return [(STEPS_PER_POINT * (index + 1), sum(chunk) / len(chunk)) for index, chunk in enumerate(chunks)]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, in the order of training")
    args = parser.parse_args()
    table_path, plot_path = args.output.with_suffix(".csv"), args.output.with_suffix(".png")
    for path in (table_path, plot_path):
        check_output(path, args.overwrite, hint=OUTPUT_HINT)
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    previous_steps = 0
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["run", "step", "train_loss"])
    for run in args.runs:
        curve = loss_curve(run)
        table.writerows((run.name, step, f"{loss:.4f}") for step, loss in curve)
        axes.plot([previous_steps + step for step, _ in curve], [loss for _, loss in curve], label=run.name)
        previous_steps += curve[-1][0]
    write_output(table_path, text.getvalue().encode(), args.overwrite)
    axes.set(xlabel="step", ylabel="train_loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    write_output(plot_path, partial(figure.savefig, dpi=100), args.overwrite)


if __name__ == "__main__":
    main()
