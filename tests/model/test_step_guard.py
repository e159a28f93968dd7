"""What goes wrong within a run: losses, gradients, data workers; and what the run does about it."""

from __future__ import annotations

import math
import signal

import pytest
import torch

from tests.cli.test_fit import callback, outside
from typst_lit.errors import UserError
from typst_lit.model.step_guard import (
    MAX_SKIPPED,
    MIN_STEPS,
    OVERFLOWS_BEFORE_WARNING,
    MicroBatch,
    StepGuard,
)


def check(guard: StepGuard, losses: list[float], norm: float = 1.0, fp16_scaler: bool = False) -> list[bool]:
    return [guard.allows_step(7, loss, norm, [MicroBatch(loss, ["record 7"])], fp16_scaler) for loss in losses]


def noisy(count: int) -> list[float]:
    return (2 + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(0))).tolist()


def test_a_spike_is_distinguished_from_noise_and_does_not_change_the_mean() -> None:
    guard = StepGuard(spike="skip")
    assert all(check(guard, noisy(200)))
    assert guard.mean == pytest.approx(2, abs=0.05) and guard.variance == pytest.approx(0.01, rel=0.5)
    assert check(guard, [2.5, 3.5, 2.0]) == [True, False, True]
    resumed = StepGuard(spike="skip")
    resumed.load_state_dict(guard.state_dict())
    assert check(resumed, [3.5]) == [False]


def test_the_first_steps_are_never_spikes_and_a_falling_loss_has_none() -> None:
    assert all(check(StepGuard(spike="stop"), [2.0] * (MIN_STEPS - 1) + [50.0]))
    assert all(check(StepGuard(spike="stop"), [10 * 0.97**step for step in range(300)]))


def test_many_consecutive_skipped_steps_stop_the_run() -> None:
    guard = StepGuard(non_finite="skip")
    assert check(guard, [math.nan] * MAX_SKIPPED) == [False] * MAX_SKIPPED
    with pytest.raises(UserError, match=r"(?s)consecutive.*record 7"):
        check(guard, [math.nan])
    guard = StepGuard(non_finite="skip")
    assert sum(check(guard, [math.nan, 1.0] * 30)) == 30
    with pytest.raises(UserError, match="gradient norm"):
        check(StepGuard(), [1.0], norm=math.inf)


def test_fp16_overflows_are_left_to_the_gradient_scaler_until_there_are_too_many(caplog) -> None:
    guard = StepGuard()
    for _ in range(3):  # the scaler lowers its scale, and the next step is fine
        assert all(check(guard, [1.0] * (OVERFLOWS_BEFORE_WARNING - 1), math.inf, fp16_scaler=True))
        assert all(check(guard, [1.0], fp16_scaler=True))
    assert not caplog.records
    assert all(check(guard, [1.0] * MAX_SKIPPED, math.inf, fp16_scaler=True))
    assert caplog.text.count("fp16 gradient overflowed in 5 consecutive steps at step 7") == 1
    with pytest.raises(UserError, match="fp16 gradient overflowed in 11 consecutive steps"):
        check(guard, [1.0], math.inf, fp16_scaler=True)
    with pytest.raises(UserError, match="the loss"):
        check(StepGuard(), [math.nan], math.nan, fp16_scaler=True)


def test_the_message_lists_the_micro_batches_that_are_not_finite() -> None:
    with pytest.raises(UserError) as error:
        StepGuard().allows_step(3, math.nan, 1.0, [MicroBatch(1.0, ["good"]), MicroBatch(math.nan, ["bad"])])
    assert "bad" in str(error.value) and "good" not in str(error.value) and "at step 3" in str(error.value)


def weights(path, name="last"):
    return torch.load(path / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def test_a_skipped_step_changes_nothing_and_the_run_continues(run, fit_args, tmp_path) -> None:
    poison = callback("PoisonAtBatch", batch=2)  # from the third batch on, the output is NaN
    fit_args = [*fit_args, "--model.schedule", "constant", "--model.warmup_steps", 1]
    skipped = run(*fit_args, "--watchdog.non_finite", "skip", "--trainer.max_epochs", 1, *poison)
    assert skipped.status == 0 and skipped.err.count("the step is skipped") == 2 and "record" in skipped.err
    short = run(
        *fit_args, "--trainer.max_epochs", 1, "--trainer.max_steps", 2, "--run_dir", tmp_path / "short",
        "--checkpoint.every_n_steps", 1,
    )  # fmt: skip
    assert short.status == 0
    before, after = weights(tmp_path / "short"), weights(tmp_path / "run")
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("reaction", "status"), [("stop", 1), ("skip", 0), ("warn", 0), ("off", 0)])
def test_a_spike_is_handled_as_configured(run, fit_args, reaction, status) -> None:
    args = [*fit_args, "--trainer.max_epochs", 7, "--watchdog.spike", reaction]
    result = run(*args, *callback("SpikeAtStep", step=25))
    assert result.status == status and "Traceback" not in result.err, result.err
    assert ("is a spike" in result.err) == (reaction != "off")
    if reaction != "off":
        assert "at step 26" in result.err and "record" in result.err.split("is a spike")[1]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSTOP, ("no answer for 3 s", "record", "data.num_workers")),
        (signal.SIGKILL, ("worker", "--ckpt_path last")),
    ],
)
def test_workers_that_hang_or_die_end_the_run(fit_args, number, words) -> None:
    args = [*fit_args, "--data.num_workers", 2, "--data.worker_timeout_s", 3, "--trainer.max_epochs", 50]
    args += ["--data.val_fraction", 0]  # else the workers of validation hang, too
    result = outside(*args, *callback("SignalToWorkers", number=int(number)))
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
