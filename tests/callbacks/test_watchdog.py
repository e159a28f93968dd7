"""What goes wrong within a run: losses, gradients, workers; and what is left of it."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.cli.test_fit import callback, outside
from typst_lit.callbacks.watchdog import MOST_SKIPPED, STEPS_TO_LEARN, Watchdog
from typst_lit.errors import UserError


class Trainer:
    global_step = 0
    world_size = 1


def watched(watchdog: Watchdog, losses: list[float], norm: float = 1.0) -> list[bool]:
    return [watchdog.allows(Trainer(), loss, norm, [(loss, ["record 7"])], False) for loss in losses]  # type: ignore[arg-type]


def noisy(count: int) -> list[float]:
    return (2 + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(0))).tolist()


def test_a_spike_is_told_from_the_noise_and_is_not_learned() -> None:
    watchdog = Watchdog(spike="skip")
    assert all(watched(watchdog, noisy(200)))
    mean, variance = watchdog.mean, watchdog.variance
    assert mean == pytest.approx(2, abs=0.05) and variance == pytest.approx(0.01, rel=0.5)
    assert watched(watchdog, [2.5, 3.5, 2.0]) == [True, False, True]
    again = Watchdog(spike="skip")
    again.load_state_dict(watchdog.state_dict())
    assert watched(again, [3.5]) == [False]


def test_the_first_steps_are_never_spikes_and_a_falling_loss_is_none() -> None:
    assert all(watched(Watchdog(spike="stop"), [2.0] * (STEPS_TO_LEARN - 1) + [50.0]))
    assert all(watched(Watchdog(spike="stop"), [10 * 0.97**step for step in range(300)]))


def test_many_skipped_steps_in_a_row_stop_the_run() -> None:
    watchdog = Watchdog(non_finite="skip")
    assert watched(watchdog, [float("nan")] * MOST_SKIPPED) == [False] * MOST_SKIPPED
    with pytest.raises(UserError, match=r"(?s)in a row.*record 7"):
        watched(watchdog, [float("nan")])
    watchdog = Watchdog(non_finite="skip")
    assert sum(watched(watchdog, [float("nan"), 1.0] * 30)) == 30
    with pytest.raises(UserError, match="gradient norm"):
        watched(Watchdog(), [1.0], norm=float("inf"))


def weights(path, name="last"):
    return torch.load(path / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


def test_a_skipped_step_changes_nothing_and_the_run_goes_on(run, fit_args, tmp_path) -> None:
    poison = callback("PoisonAtBatch", batch=2)  # from the third batch on, the output is NaN
    fit_args = [*fit_args, "--model.schedule", "constant", "--warmup.steps", 1]
    skipped = run(*fit_args, "--watchdog.non_finite", "skip", "--trainer.max_epochs", 1, *poison)
    assert skipped.status == 0 and skipped.err.count("the step is skipped") == 2 and "record" in skipped.err
    short = run(
        *fit_args, "--trainer.max_epochs", 1, "--trainer.max_steps", 2, "--run_dir", tmp_path / "short",
        "--adapter_checkpoint.every_n_steps", 1,
    )  # fmt: skip
    assert short.status == 0
    before, after = weights(tmp_path / "short"), weights(tmp_path / "run")
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("reaction", "status"), [("stop", 1), ("skip", 0), ("warn", 0), ("off", 0)])
def test_a_spike_is_answered_as_configured(run, fit_args, reaction, status) -> None:
    args = [*fit_args, "--trainer.max_epochs", 7, "--watchdog.spike", reaction]
    result = run(*args, *callback("SpikeAtStep", step=25))
    assert result.status == status and "Traceback" not in result.err, result.err
    assert ("is a spike" in result.err) == (reaction != "off")
    if reaction != "off":
        assert "at step 26" in result.err and "record" in result.err.split("is a spike")[1]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGSTOP, ("no answer for 3 s", "record", "--data.num_workers 0")),
        (signal.SIGKILL, ("worker", "--ckpt_path last")),
    ],
)
def test_workers_that_hang_or_die_end_the_run(fit_args, number, told) -> None:
    args = [*fit_args, "--data.num_workers", 2, "--data.worker_timeout", 3, "--trainer.max_epochs", 50]
    args += ["--data.val_fraction", 0]  # else the workers of validation hang, too
    result = outside(*args, *callback("SignalToWorkers", number=int(number)))
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(words in result.stderr for words in told), result.stderr
