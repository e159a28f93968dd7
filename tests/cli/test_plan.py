"""Plans: what is printed, what is written, and a fit that uses one."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
import yaml

from tests.conftest import SAMPLES


@pytest.fixture
def plan_args(fit_args) -> list[str]:
    return ["plan", *fit_args[1:]]


def test_a_plan_is_printed_and_written_and_fit_uses_it(run, plan_args, fit_args, tmp_path) -> None:
    overlay = tmp_path / "plan.yaml"
    planned = run(*plan_args, "--device", "t4", "--write", overlay, "--trainer.accumulate_grad_batches", 4)
    assert planned.status == 0, planned.err
    rows = {line.split()[0]: line.split()[1:] for line in planned.out.splitlines() if line.startswith(("none", "full"))}
    assert len(rows["none"]) == len(rows["full"]) == 6
    assert all(float(full) <= float(none) for full, none in zip(rows["full"], rows["none"], strict=True))
    assert "--data.batch_size 8 --trainer.accumulate_grad_batches 1" in planned.out
    assert yaml.safe_load(overlay.read_text())["data"] == {"batch_size": 8}
    assert not (tmp_path / "run").exists()
    fitted = run(*fit_args[:5], "--config", overlay, *fit_args[5:11], "--trainer.accelerator", "cpu")
    assert fitted.status == 0, fitted.err
    saved = yaml.safe_load(next((tmp_path / "run").glob("tensorboard/*/config.yaml")).read_text())
    assert saved["data"]["batch_size"] == 8 and saved["model"]["gradient_checkpointing"] == "none"


def test_what_cannot_be_planned_is_refused(run, plan_args, tmp_path) -> None:
    small = run(*plan_args, "--device", "t4", "--gib", 0.801)
    assert small.status == 1 and "nothing fits into 0.0 GiB" in small.err and "--data.max_length" in small.err
    unknown = run(*plan_args, "--device", "toaster")
    assert unknown.status == 1 and "toaster" in unknown.err and "rtx4090" in unknown.err
    model = run(*plan_args, "--model.base_model", tmp_path / "none")
    assert model.status == 1 and str(tmp_path / "none") in model.err and "Traceback" not in model.err


def test_a_fit_plans_itself(run, fit_args, tmp_path) -> None:
    result = run(*fit_args, "--plan", "auto", "--trainer.accumulate_grad_batches", 4)
    assert result.status == 0, result.err
    assert "Plan: " in result.err and "predicted peak" in result.err
    overlay = yaml.safe_load((tmp_path / "run/plan.yaml").read_text())
    saved = yaml.safe_load(next((tmp_path / "run").glob("tensorboard/*/config.yaml")).read_text())
    assert saved["data"]["batch_size"] == overlay["data"]["batch_size"] == 8
    assert saved["trainer"]["accumulate_grad_batches"] == 1
    assert "step 2/2" in result.err
    resumed = run(*fit_args, "--plan", "auto", "--ckpt_path", "last", "--trainer.max_epochs", 3)
    assert resumed.status == 0 and "The plan of" in resumed.err and "another order" not in resumed.err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_a_batch_that_does_not_fit_is_split_and_nothing_is_lost(tiny_model, tmp_path) -> None:
    args = [
        "fit", "--data.path", SAMPLES, "--model.base_model", tiny_model, "--trainer.accumulate_grad_batches", 1,
        "--trainer.max_epochs", 3, "--model.warmup_steps", 1, "--data.batch_size", 4, "--trainer.accelerator", "cpu",
        "--eval.every_n_epochs", 0, "--plan", "auto", "--model.adapter.lora_dropout", 0,
    ]  # fmt: skip
    # A fixed threshold: freed memory is returned to the system, which is what the limit counts.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16), "OMP_NUM_THREADS": "1"}

    def fit(name: str, *more: str) -> tuple[str, dict]:
        command = [sys.executable, "-m", "typst_lit", *map(str, args), "--run_dir", str(tmp_path / name), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        return done.stderr, torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)

    _, free = fit("free")
    log, limited = fit("held", "--trainer.callbacks+=tests.fault_injection.ShrinkMemory")
    assert re.search(r"Memory ran out at step \d\. From here on, each batch is split into 2", log)
    assert "Traceback" not in log and limited["num_splits"] >= 2 and free["num_splits"] == 1
    assert limited["global_step"] == free["global_step"]
    for name, weight in free["state_dict"].items():
        torch.testing.assert_close(limited["state_dict"][name], weight, rtol=1e-3, atol=1e-5)
