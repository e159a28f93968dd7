"""The statistics of lengths, with and without matplotlib."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from typst_lit.data.lengths import LengthReport
from typst_lit.errors import UserError

REPORT = LengthReport(prompt=np.array([10, 20, 30, 700]), completion=np.array([90, 80, 95, 300]))


def test_the_text_histogram_counts_every_sample() -> None:
    lines = REPORT.text_histogram(num_bins=4, width=20).splitlines()
    assert [int(line.split()[-1]) for line in lines] == [3, 0, 0, 1]
    assert lines[0].count("#") == 20 and lines[1].count("#") == 0 and lines[3].count("#") == 7
    assert lines[0].split()[0] == "100" and lines[3].split()[2] == "1000"


def test_equal_lengths_have_a_histogram_too() -> None:
    report = LengthReport(prompt=np.array([10, 10]), completion=np.array([5, 5]))
    assert sum(int(line.split()[-1]) for line in report.text_histogram().splitlines()) == 2


def test_drawing_without_matplotlib_names_the_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"typst-lit\[plot\]"):
        REPORT.draw(io.BytesIO())
