"""How long the samples of a data set are, and what a maximum length would cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

LIMITS = (512, 1024, 2048, 3072, 4096, 6144, 8192)
PERCENTILES = (0, 5, 25, 50, 75, 90, 95, 99, 100)


@dataclass(frozen=True)
class LengthReport:
    """Token counts of a data set.

    Attributes:
        prompt: (N,) tokens of each prompt.
        completion: (N,) tokens of each completion with its end token.
    """

    prompt: np.ndarray
    completion: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.prompt + self.completion

    def fits(self, limit: int) -> float:
        """Returns the share of samples that are no longer than ``limit``."""
        return float(np.mean(self.total <= limit))

    def padding_waste(self, limit: int) -> float:
        """Returns the share of the computed places that would be padding if each sample were padded to ``limit``."""
        return 1 - float(np.minimum(self.total, limit).mean()) / limit

    def text(self) -> str:
        """Returns the tables to print."""
        parts = (("prompt", self.prompt), ("completion", self.completion), ("total", self.total))
        rows = [["", *("min" if p == 0 else "max" if p == 100 else f"{p} %" for p in PERCENTILES), "mean"]]
        for name, values in parts:
            marks = np.percentile(values, PERCENTILES, method="higher")
            rows.append([name, *(f"{int(mark)}" for mark in marks), f"{values.mean():.0f}"])
        limits = [["max length", *map(str, LIMITS)]]
        limits.append(["samples that fit", *(f"{self.fits(limit):.0%}" for limit in LIMITS)])
        limits.append(["padding to it wastes", *(f"{self.padding_waste(limit):.0%}" for limit in LIMITS)])
        title = f"{len(self.total)} samples, {int(self.total.sum())} tokens"
        return f"{title}\n\n{_table(rows)}\n\n{_table(limits)}"

    def draw(self, path: Path) -> None:
        """Draws the histogram of the lengths as a PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        bins = np.histogram_bin_edges(np.concatenate([self.total, self.prompt, self.completion]), bins=40).tolist()
        for name, values in (("total", self.total), ("completion", self.completion), ("prompt", self.prompt)):
            axes.hist(
                values, bins=bins, alpha=0.55, label=f"{name}, median {np.percentile(values, 50, method='higher'):.0f}"
            )
        top = float(self.total.max())
        for limit in LIMITS:
            if limit <= top * 1.15:
                axes.axvline(limit, color="0.35", linewidth=0.8, linestyle="--")
                axes.annotate(
                    f"{limit}\n{self.fits(limit):.0%} fit",
                    (limit, 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -22),
                    textcoords="offset points",
                    fontsize=7,
                )
        axes.set_xlabel("tokens")
        axes.set_ylabel("samples")
        axes.set_title(f"Lengths of {len(self.total)} samples", loc="left")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
        axes.set_xlim(0, max(top, LIMITS[0]) * 1.12)
        figure.savefig(path, dpi=120)


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
