from __future__ import annotations

import math

import pytest

from typst_lit.model.lr import learning_rate_factor


def test_the_warm_up_rises_to_the_peak_and_the_rest_falls_to_zero() -> None:
    for schedule in ("linear", "cosine"):
        factors = [learning_rate_factor(step, 100, 10, schedule) for step in range(101)]
        assert factors[0] == 0.1 and factors[9] == 1 and factors[10] == 1
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert factors[100] == pytest.approx(0)
        assert factors[55] == pytest.approx(0.5)
    assert learning_rate_factor(99, 100, 10, "constant") == 1
    assert learning_rate_factor(0, 100, 0, "linear") == 1


def test_runs_without_an_end_do_not_decay() -> None:
    assert learning_rate_factor(10**6, math.inf, 10, "cosine") == 1
