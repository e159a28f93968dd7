"""Optimizers and schedules of the user's own, through the real command line."""

from __future__ import annotations

import pytest
import torch
import yaml

from typst_lit.errors import UserError
from typst_lit.model.optimizers import build_optimizer


def optimizer_state(run_dir) -> dict:
    checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["optimizer_states"][0]


def test_any_optimizer_class_trains(run, fit_args, tmp_path) -> None:
    args = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.init_args.momentum", "0.9"]
    result = run(*fit_args, *args, "--model.learning_rate", "1e-2", "--model.weight_decay", "0.03")
    assert result.status == 0, result.err
    state = optimizer_state(tmp_path / "run")
    assert state["state"] and all(set(entry) == {"momentum_buffer"} for entry in state["state"].values())
    assert all(group["momentum"] == 0.9 and group["weight_decay"] == 0.03 for group in state["param_groups"])
    assert all(0 < group["lr"] < 1e-2 for group in state["param_groups"])  # of the schedule, not of the class
    saved = yaml.safe_load(next((tmp_path / "run").glob("tensorboard/*/config.yaml")).read_text())
    assert saved["model"]["optimizer"]["class_path"] == "torch.optim.SGD"


def test_any_schedule_class_is_followed(run, fit_args, tmp_path, monkeypatch) -> None:
    (tmp_path / "my_schedules.py").write_text(
        "from typst_lit.model.lr import Schedule\n\n\n"
        "class Halving(Schedule):\n"
        "    def __init__(self, every: int) -> None:\n"
        "        self.every = every\n\n"
        "    def factor(self, step: int, num_steps: float) -> float:\n"
        "        return 0.5 ** (step // self.every)\n"
    )
    monkeypatch.chdir(tmp_path)
    args = ["--model.schedule", "my_schedules.Halving", "--model.schedule.init_args.every", "2"]
    result = run(*fit_args, *args, "--model.learning_rate", "1e-3", "--trainer.max_steps", "6")
    assert result.status == 0, result.err
    # The last of 6 steps is the 5th after the warm-up of 1.
    assert optimizer_state(tmp_path / "run")["param_groups"][0]["lr"] == 1e-3 * 0.5**2


def test_unknown_optimizers_and_schedules_are_rejected(run, fit_args) -> None:
    for setting in ("optimizer", "schedule"):
        result = run(*fit_args, f"--model.{setting}", "nonsense")
        assert result.status == 2 and setting in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_optimizers_for_gpus_are_rejected_on_a_cpu(optimizer) -> None:
    with pytest.raises(UserError, match=r"`model\.optimizer=adamw`"):
        build_optimizer(optimizer, [torch.nn.Parameter(torch.zeros(2, 2))], torch.device("cpu"))
