"""Keeps a run's curve: what TensorBoard's events say, as a table and a picture.

    python -m benchmarks.plot_loss OUTPUT RUN_DIR [RUN_DIR ...]

writes OUTPUT.csv (run, step, train_loss) and OUTPUT.png. Runs that followed each other are drawn as one.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERY = 10  # steps that are averaged into a point


def points(run: Path) -> list[tuple[int, float]]:
    """Returns (step, mean train_loss of the steps up to it). Where a run was resumed, the later events count."""
    by_step: dict[int, float] = {}
    for version in sorted(run.glob("tensorboard/version_*"), key=lambda path: int(path.name.split("_")[1])):
        events = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
        by_step |= {event.step: event.value for event in events.Scalars("train_loss")}
    losses = [by_step[step] for step in sorted(by_step)]
    parts = [losses[start : start + EVERY] for start in range(0, len(losses), EVERY)]
    return [(EVERY * (place + 1), sum(part) / len(part)) for place, part in enumerate(parts)]


def main() -> None:
    output, runs = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    output.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    before = 0
    with output.with_suffix(".csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["run", "step", "train_loss"])
        for run in runs:
            curve = points(run)
            table.writerows((run.name, step, f"{loss:.4f}") for step, loss in curve)
            axes.plot([before + step for step, _ in curve], [loss for _, loss in curve], label=run.name)
            before += curve[-1][0]
    axes.set(xlabel="step", ylabel="train_loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
