from __future__ import annotations

import math

import pytest

from typst_lit.errors import UserError
from typst_lit.model.lr import LearningRate, Schedule


def test_the_warm_up_rises_to_the_peak_and_the_rest_falls_to_zero() -> None:
    for schedule in ("linear", "cosine"):
        rate = LearningRate(1, schedule, warmup_steps=10)
        rates = [rate.at(step, 100) for step in range(101)]
        assert rates[0] == 0.1 and rates[9] == 1 and rates[10] == 1
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert rates[100] == pytest.approx(0)
        assert rates[55] == pytest.approx(0.5)
    assert LearningRate(3, "constant", 10).at(99, 100) == 3
    assert LearningRate(3, "linear", 0).at(0, 100) == 3


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_runs_without_an_end_do_not_decay(schedule) -> None:
    assert LearningRate(3, schedule, 10).at(10**6, math.inf) == 3


def test_the_warm_up_is_set_in_steps_or_as_a_ratio() -> None:
    assert LearningRate(warmup_steps=100).num_warmup_steps(1000) == 100
    assert LearningRate(warmup_ratio=0.05).num_warmup_steps(1000) == 50
    assert LearningRate(warmup_ratio=0.05).num_warmup_steps(math.inf) == 0
    assert LearningRate(warmup_steps=0).num_warmup_steps(10) == 0


def test_a_warm_up_that_is_longer_than_the_run_is_shortened_with_a_warning(caplog) -> None:
    for total_steps in (1000, math.inf):
        LearningRate(warmup_steps=100).warn_if_shortened(total_steps)
    LearningRate(warmup_ratio=0.05).warn_if_shortened(100)
    assert not caplog.records
    LearningRate(warmup_steps=100).warn_if_shortened(100)
    assert "shortened to 10." in caplog.text
    assert LearningRate(warmup_steps=100).num_warmup_steps(100) == 10
    assert LearningRate(warmup_steps=100).num_warmup_steps(1) == 0


@pytest.mark.parametrize("options", [{"peak": 0.0}, {"warmup_steps": -1}, {"warmup_ratio": 1.5}])
def test_values_out_of_range_are_rejected(options) -> None:
    with pytest.raises(UserError, match=r"model\.(learning_rate|warmup)"):
        LearningRate(**options)


class Halving(Schedule):
    """Halves the learning rate after every step.

    Args:
        factor_per_step: what each step multiplies it by.
    """

    def __init__(self, factor_per_step: float = 0.5) -> None:
        self.factor_per_step = factor_per_step

    def factor(self, step: int, num_steps: float) -> float:
        return self.factor_per_step**step


def test_a_schedule_of_the_users_own_follows_the_warm_up() -> None:
    rate = LearningRate(1, Halving(), warmup_steps=2)
    assert [rate.at(step, 10) for step in range(5)] == [0.5, 1, 1, 0.5, 0.25]
