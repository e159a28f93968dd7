"""How long the samples of a data set are, and what a maximum length costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from typst_lit.errors import UserError

MAX_LENGTHS = (512, 1024, 2048, 3072, 4096, 6144, 8192)
PERCENTILES = (0, 5, 25, 50, 75, 90, 95, 99, 100)


@dataclass(frozen=True)
class LengthReport:
    """Token counts of a data set.

    Attributes:
        prompt: (N,) tokens of each prompt.
        completion: (N,) tokens of each completion, with EOS.

    >>> report = LengthReport(prompt=np.array([300, 500]), completion=np.array([200, 700]))
    >>> report.fits(1024), round(report.padding_waste(1200), 2)
    (0.5, 0.29)
    >>> print(report.text_histogram(num_bins=2, width=20))
      500 -   850  ####################  1
      850 -  1200  ####################  1
    """

    prompt: np.ndarray
    completion: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.prompt + self.completion

    def fits(self, max_length: int) -> float:
        """Returns the share of samples with at most ``max_length`` tokens."""
        return float(np.mean(self.total <= max_length))

    def padding_waste(self, max_length: int) -> float:
        """Returns the share of the computed tokens that is padding if each sample is padded to ``max_length``."""
        return 1 - float(np.minimum(self.total, max_length).mean()) / max_length

    def text(self) -> str:
        """Returns the tables to print."""
        parts = (("prompt", self.prompt), ("completion", self.completion), ("total", self.total))
        rows = [["", *("min" if p == 0 else "max" if p == 100 else f"{p} %" for p in PERCENTILES), "mean"]]
        for name, values in parts:
            marks = np.percentile(values, PERCENTILES, method="higher")
            rows.append([name, *(f"{int(mark)}" for mark in marks), f"{values.mean():.0f}"])
        fit_rows = [["max length", *map(str, MAX_LENGTHS)]]
        fit_rows.append(["samples that fit", *(f"{self.fits(length):.0%}" for length in MAX_LENGTHS)])
        fit_rows.append(["padding to it wastes", *(f"{self.padding_waste(length):.0%}" for length in MAX_LENGTHS)])
        title = f"{len(self.total)} samples, {int(self.total.sum())} tokens"
        return f"{title}\n\n{_table(rows)}\n\n{_table(fit_rows)}"

    def text_histogram(self, num_bins: int = 16, width: int = 50) -> str:
        """Returns the histogram of the total lengths as text: one line per bin, with its number of samples."""
        counts, edges = np.histogram(self.total, bins=num_bins)
        bars = ["#" * -(-int(count) * width // int(counts.max())) for count in counts]
        return "\n".join(
            f"{edge:5.0f} - {next_edge:5.0f}  {bar:{width}}  {count}"
            for edge, next_edge, bar, count in zip(edges[:-1], edges[1:], bars, counts, strict=True)
        )

    def draw(self, stream: BinaryIO, file_format: str = "png") -> None:
        """Draws the histogram of the lengths as an image.

        Args:
            stream: where to write it.
            file_format: any that matplotlib knows, such as ``png``, ``svg`` or ``pdf``.

        Raises:
            UserError: if matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise UserError(
                f"drawing needs matplotlib ({error}).", hint="Install it: pip install 'typst-lit[plot]'"
            ) from error

        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        bins = np.histogram_bin_edges(np.concatenate([self.total, self.prompt, self.completion]), bins=40).tolist()
        for name, values in (("total", self.total), ("completion", self.completion), ("prompt", self.prompt)):
            axes.hist(
                values, bins=bins, alpha=0.55, label=f"{name}, median {np.percentile(values, 50, method='higher'):.0f}"
            )
        top = float(self.total.max())
        for max_length in MAX_LENGTHS:
            if max_length <= top * 1.15:
                axes.axvline(max_length, color="0.35", linewidth=0.8, linestyle="--")
                axes.annotate(
                    f"{max_length}\n{self.fits(max_length):.0%} fit",
                    (max_length, 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(3, -22),
                    textcoords="offset points",
                    fontsize=7,
                )
        axes.set_xlabel("tokens")
        axes.set_ylabel("samples")
        axes.set_title(f"Lengths of {len(self.total)} samples", loc="left")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
        axes.set_xlim(0, max(top, MAX_LENGTHS[0]) * 1.12)
        figure.savefig(stream, dpi=120, format=file_format)


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
