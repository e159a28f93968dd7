"""The main job through the real command line: fit, interrupt, resume, predict."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from tests.conftest import SAMPLES


def outside(*args: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, for failures that would kill this one."""
    return subprocess.run(
        [sys.executable, "-m", "typst_lit", *map(str, args)], capture_output=True, text=True, check=False
    )


def callback(name: str, **options: object) -> list[str]:
    flags = [f"--trainer.callbacks+=tests.fault_injection.{name}"]
    return flags + [f"--trainer.callbacks.{key}={value}" for key, value in options.items()]


def same(one: object, other: object) -> bool:
    """Compares nested values, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    return one == other


def test_a_fit_writes_every_file_it_promises(run, fit_args, tmp_path) -> None:
    result = run(*fit_args)
    assert result.status == 0, result.err
    directory = tmp_path / "run"
    for name in ("best", "last"):
        files = {path.name for path in (directory / "adapter" / name).iterdir()}
        assert {
            "adapter_config.json",
            "adapter_model.safetensors",
            "tokenizer.json",
            "typst_lit.json",
            "README.md",
        } <= files
    card = (directory / "adapter/best/README.md").read_text()
    assert "val_loss" in card and "4-bit NF4" in card and str(fit_args[4]) in card
    assert not list(directory.rglob(".typst-lit-tmp-*")) and not list(directory.rglob(".typst-lit-lock"))
    for words in ("Held out", "parameters are trained", "Memory, peak of each phase", "backward", "Learning curve"):
        assert words in result.err
    assert "step 8/8" in result.err and "train_loss" in result.err and "tokens_per_s" in result.err
    checkpoint = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"]) and len(checkpoint["state_dict"]) == 16


def test_tensorboard_has_the_curves_and_the_settings(run, fit_args, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(*fit_args).status == 0
    log = next((tmp_path / "run/tensorboard").iterdir())
    assert (log / "config.yaml").is_file()
    events = EventAccumulator(str(log)).Reload()
    names = set(events.Tags()["scalars"])
    assert {"train_loss", "val_loss", "val_perplexity", "lr", "grad_norm", "tokens_per_s", "memory_peak_gib"} <= names
    assert len(events.Scalars("train_loss")) == 8 and len(events.Scalars("val_loss")) == 2
    assert all(event.value > 0 for event in events.Scalars("tokens_per_s"))
    plugin = events.SummaryMetadata("_hparams_/session_start_info")
    assert b"model.learning_rate" in plugin.plugin_data.content and b"adapter" in plugin.plugin_data.content


def test_the_loss_falls_when_all_weights_are_trained(run, fit_args, tmp_path) -> None:
    result = run(
        *fit_args, "--model.adapter", "null", "--model.use_4bit", "false", "--model.learning_rate", 5e-3,
        "--trainer.max_epochs", 5,
    )  # fmt: skip
    assert result.status == 0, result.err
    rows = [line.split() for line in result.err.splitlines() if line.startswith("   ") and line.count(".") == 3]
    values = [float(row[1]) for row in rows]
    assert len(values) == 5 and values[-1] < values[0] - 0.5
    assert (tmp_path / "run/model/best/model.safetensors").is_file()


# 8 training pairs in batches of 2 make 4 batches an epoch, or 2 steps with accumulation 2. Dropout is on by default.
@pytest.mark.parametrize(
    ("killed", "validating", "accumulate", "flags"),
    [
        pytest.param(3, False, 1, [], id="within an epoch"),
        pytest.param(7, False, 2, ["--data.num_workers", 3], id="within an accumulated step, with workers"),
        pytest.param(2, True, 1, ["--trainer.val_check_interval", 0.5], id="while validating within an epoch"),
        pytest.param(2, False, 1, ["--data.packing", "true", "--data.max_length", 700], id="after step 1, packed"),
        pytest.param(2, False, 1, [], id="after step 1", marks=pytest.mark.slow),
        pytest.param(3, False, 1, ["--data.num_workers", 3], id="within an epoch, workers", marks=pytest.mark.slow),
        pytest.param(7, False, 2, [], id="within an accumulated step", marks=pytest.mark.slow),
        pytest.param(4, True, 1, [], id="while validating after an epoch", marks=pytest.mark.slow),
        pytest.param(5, False, 1, [], id="after an epoch", marks=pytest.mark.slow),
        pytest.param(6, False, 1, [], id="one step after an epoch", marks=pytest.mark.slow),
        pytest.param(
            4, False, 1, ["--data.num_workers", 3, "--data.packing", "true", "--data.max_length", 700],
            id="one step after an epoch, packed, workers", marks=pytest.mark.slow,
        ),
        pytest.param(
            7, False, 1, ["--trainer.val_check_interval", 0.5], id="after a validation within an epoch",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_killed_and_resumed_equals_never_stopped(
    run, fit_args, tmp_path, killed, validating, accumulate, flags
) -> None:
    args = [*fit_args, "--trainer.accumulate_grad_batches", accumulate, "--checkpoint.every_n_steps", 1, *flags]
    order = tmp_path / "order"
    straight = run(*args, "--run_dir", tmp_path / "straight", *callback("RecordOrder", path=f"{order}-1"))
    assert straight.status == 0, straight.err
    stopped = outside(*args, *callback("KillAtBatch", batch=killed, during_validation=validating))
    assert stopped.returncode == -9, stopped.stderr
    resumed = run(*args, "--ckpt_path", "last", *callback("RecordOrder", path=f"{order}-2"))
    assert resumed.status == 0, resumed.err
    seen = (tmp_path / "order-1").read_text().splitlines()
    assert (
        seen[-len((tmp_path / "order-2").read_text().splitlines()) :] == (tmp_path / "order-2").read_text().splitlines()
    )
    one, other = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("straight", "run")
    )
    steps = len(seen) // accumulate
    assert one["global_step"] == other["global_step"] == steps and steps == (len(seen) if accumulate == 1 else 4)
    for name in ("best", "last"):
        weights = [
            tmp_path / run_name / "adapter" / name / "adapter_model.safetensors" for run_name in ("straight", "run")
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert same(one["state_dict"], other["state_dict"])
    assert same(one["optimizer_states"], other["optimizer_states"])
    curves = [next(v for k, v in c["callbacks"].items() if "LearningCurve" in k) for c in (one, other)]
    assert [point[:2] for point in curves[0]["points"]] == [point[:2] for point in curves[1]["points"]]


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(run, fit_args, tmp_path) -> None:
    stopped = run(*fit_args, "--checkpoint.every_n_steps", 1, *callback("PoisonAtBatch", batch=2))
    assert stopped.status == 1 and "Traceback" not in stopped.err
    assert "not finite at step 3" in stopped.err and "record" in stopped.err and "--ckpt_path last" in stopped.err
    path = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    resumed = run(*fit_args, "--ckpt_path", path.resolve())
    assert resumed.status == 0 and "Resuming after step 2" in resumed.err, resumed.err


def test_slow_steps_are_saved_by_the_clock(run, fit_args, tmp_path) -> None:
    stopped = outside(
        *fit_args, "--checkpoint.every_n_steps", 1000, "--checkpoint.every_minutes", 1e-6,
        *callback("KillAtBatch", batch=3),
    )  # fmt: skip
    assert stopped.returncode == -9, stopped.stderr
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


def test_the_command_line_wins_over_the_checkpoint(run, fit_args, tmp_path) -> None:
    assert run(*fit_args).status == 0
    result = run(
        *fit_args, "--trainer.max_epochs", 3, "--ckpt_path", "last", "--model.learning_rate", 0.0123,
        "--model.schedule", "constant", "--model.weight_decay", 0.05,
    )  # fmt: skip
    assert result.status == 0, result.err
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == 0.0123 and group["weight_decay"] == 0.05
    assert checkpoint["global_step"] == 12


def test_a_run_directory_is_never_overwritten(run, fit_args, tmp_path) -> None:
    assert run(*fit_args, "--trainer.max_steps", 1).status == 0
    weights = tmp_path / "run/adapter/best/adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    result = run(*fit_args)
    assert result.status == 1 and weights.stat().st_mtime_ns == before
    assert f"--model.adapter_path {weights.parent}" in result.err and "--ckpt_path last" in result.err
    further = run(*fit_args, "--model.adapter_path", weights.parent, "--run_dir", tmp_path / "more")
    assert further.status == 0, further.err


def test_training_an_adapter_further_starts_with_its_weights(run, fit_args, tmp_path) -> None:
    from safetensors.torch import load_file

    assert run(*fit_args, "--model.learning_rate", 1e-2).status == 0
    more = run(
        *fit_args, "--model.adapter_path", tmp_path / "run", "--run_dir", tmp_path / "more",
        "--model.learning_rate", 1e-12, "--trainer.max_steps", 1,
    )  # fmt: skip
    assert more.status == 0, more.err
    first, second = (load_file(tmp_path / name / "adapter/last/adapter_model.safetensors") for name in ("run", "more"))
    assert any(value.any() for name, value in first.items() if "lora_B" in name)
    for name in first:
        torch.testing.assert_close(second[name], first[name])


def test_resuming_without_a_checkpoint_names_the_runs_that_have_one(run, fit_args, tmp_path) -> None:
    result = run(*fit_args, "--ckpt_path", "last")
    assert result.status == 1 and "contains no intact checkpoint" in result.err
    assert run(*fit_args, "--trainer.max_steps", 1).status == 0
    result = run(*fit_args, "--run_dir", tmp_path / "other", "--ckpt_path", "last")
    assert result.status == 1 and str(tmp_path / "run") in result.err  # the run that has one


def test_a_checkpoint_of_another_run_does_not_disable_the_overwrite_check(run, fit_args, tmp_path) -> None:
    assert run(*fit_args, "--trainer.max_steps", 1).status == 0
    assert run(*fit_args, "--trainer.max_steps", 1, "--run_dir", tmp_path / "other").status == 0
    result = run(*fit_args, "--ckpt_path", tmp_path / "other/checkpoints/last.ckpt")
    assert result.status == 1 and "would overwrite" in result.err


def test_resuming_a_finished_run_reports_that_nothing_is_left(run, fit_args) -> None:
    assert run(*fit_args).status == 0
    again = run(*fit_args, "--ckpt_path", "last")
    assert again.status == 0 and "Nothing was left to train" in again.err


def test_early_stopping_follows_the_command_line_when_resumed(run, fit_args) -> None:
    flags = ["--early_stopping.min_delta", 10, "--early_stopping.patience"]
    assert run(*fit_args, *flags, 9).status == 0
    resumed = run(*fit_args, *flags, 2, "--ckpt_path", "last", "--trainer.max_epochs", 9)
    assert resumed.status == 0 and "Stopped early" in resumed.err, resumed.err
    assert "step 12/36" in resumed.err or "validation at step 12" in resumed.err
    assert "validation at step 16" not in resumed.err


def test_a_changed_batch_size_is_reported_when_resuming(run, fit_args) -> None:
    assert run(*fit_args).status == 0
    result = run(*fit_args, "--ckpt_path", "last", "--trainer.max_epochs", 4, "--data.batch_size", 4)
    assert result.status == 0 and "continues in another order" in result.err, result.err


def stopped_by(
    number: int, args: list[object], moment: str = "step 1/", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a fit of many epochs in a process of its own and sends it a signal when it prints a certain line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "typst_lit", *map(str, args), "--trainer.max_epochs", "1000"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(moment):
            break
    process.send_signal(number)
    rest = process.stderr.read()
    return subprocess.CompletedProcess(process.args, process.wait(), "", rest)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_prints_how_to_resume(run, fit_args, tmp_path, number, status) -> None:
    # A schedule that does not depend on the last step, which is not known yet.
    fit_args = [*fit_args, "--model.schedule", "constant", "--model.warmup_steps", 3]
    fit_args += ["--trainer.check_val_every_n_epoch", 1000]  # no validation that would have to be finished first
    stopped = stopped_by(number, [*fit_args, "--checkpoint.every_n_steps", 10**6])
    assert stopped.returncode == status and "Traceback" not in stopped.stderr
    step = int(re.findall(r"after step (\d+), which is saved", stopped.stderr)[0])
    command = stopped.stderr.rstrip().splitlines()[-1].strip()
    assert command.startswith("typst-lit fit ") and command.endswith("--ckpt_path last")
    resumed = run(*shlex.split(command)[1:], "--trainer.max_epochs", 1000, "--trainer.max_steps", step + 4)
    assert resumed.status == 0 and f"Resuming after step {step}," in resumed.err
    straight = run(
        *fit_args, "--run_dir", tmp_path / "straight", "--trainer.max_epochs", 1000, "--trainer.max_steps", step + 4
    )
    assert straight.status == 0
    one, other = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("straight", "run")
    )
    assert one["global_step"] == other["global_step"] == step + 4
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])


def test_a_signal_does_not_wait_for_a_validation(run, fit_args) -> None:
    endless = ["--eval.every_n_epochs", 1, "--generation.max_tokens", 4000]
    stopped = stopped_by(signal.SIGTERM, [*fit_args, *endless], "Generating documents")
    assert stopped.returncode == 143 and "Traceback" not in stopped.stderr, stopped.stderr
    assert "after step 4, during a validation; no checkpoint has been saved yet" in stopped.stderr
    assert not stopped.stderr.rstrip().endswith("--ckpt_path last")


def test_under_slurm_the_job_is_queued_again_and_resumes(run, fit_args, tmp_path, monkeypatch) -> None:
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    stopped = stopped_by(signal.SIGUSR1, fit_args, "validation at step 8", SLURM_JOB_ID="417", PATH=path)
    assert stopped.returncode == 0 and "is requeued" in stopped.stderr, stopped.stderr
    assert (tmp_path / "called").read_text() == "requeue 417\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    resumed = run(*fit_args, "--trainer.max_epochs", 30, "--trainer.max_steps", 20)
    assert resumed.status == 0 and "Resuming after step" in resumed.err, resumed.err


def test_validate_can_use_a_checkpoint_and_never_ignores_one(run, fit_args) -> None:
    args = [*fit_args, "--model.learning_rate", 1e-2]
    fitted = run(*args)
    assert fitted.status == 0
    loss = re.findall(r"val_loss (\d+\.\d+)", fitted.err)[1]
    measured = run("validate", *args[1:], "--ckpt_path", "last")
    assert measured.status == 0 and "│" in measured.out
    value = float(re.findall(r"val_loss[^\d]+(\d+\.\d+)", measured.out)[0])
    assert value == pytest.approx(float(loss), abs=2e-3)  # evaluation uses the faster, rounder 4-bit kernel
    missing = run("validate", *args[1:], "--run_dir", "nowhere", "--ckpt_path", "last")
    assert missing.status == 1 and "contains no intact checkpoint" in missing.err


def test_resuming_with_another_adapter_is_an_error(run, fit_args) -> None:
    assert run(*fit_args, "--trainer.max_steps", 1).status == 0
    result = run(*fit_args, "--ckpt_path", "last", "--model.adapter.r", 4)
    assert result.status == 1 and "saved with another adapter" in result.err and "lora_A" in result.err


def test_a_damaged_checkpoint_is_an_error(run, fit_args, tmp_path) -> None:
    path = tmp_path / "run/checkpoints/mine.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a checkpoint")
    result = run(*fit_args, "--ckpt_path", path)
    assert result.status == 1 and "is not a checkpoint" in result.err and "Traceback" not in result.err


def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(run, fit_args, tmp_path) -> None:
    flags = ["--checkpoint.every_n_steps", 1, "--checkpoint.keep", 3]
    assert run(*fit_args, *flags, "--trainer.max_steps", 3).status == 0
    damaged = sorted((tmp_path / "run/checkpoints").glob("*-step-3.ckpt"))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-100])
    result = run(*fit_args, "--ckpt_path", "last")
    assert result.status == 0 and "is skipped" in result.err and all(path.name in result.err for path in damaged)
    assert "Resuming after step 2" in result.err


def test_a_file_requests_a_checkpoint_and_copies_are_saved_elsewhere(run, fit_args, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/SAVE").touch()
    drive = tmp_path / "drive"
    result = run(*fit_args, "--checkpoint.copy_to", drive, "--trainer.max_steps", 3)
    assert result.status == 0 and "as the file SAVE requested" in result.err, result.err
    assert "step-1.ckpt" in result.err and not (tmp_path / "run/SAVE").exists()
    resumed = run(*fit_args, "--run_dir", tmp_path / "elsewhere", "--ckpt_path", drive)
    assert resumed.status == 0 and "Resuming after step 3" in resumed.err, resumed.err


def test_out_of_memory_lists_what_to_lower_in_order(run, fit_args) -> None:
    result = run(*fit_args, "--data.batch_size", 4, *callback("OutOfMemory"))
    assert result.status == 1 and "Traceback" not in result.err
    flags = [
        "--data.batch_size 1 --trainer.accumulate_grad_batches 4", "--data.max_length", "--model.adapter.r 8",
        "--model.adapter.target_modules",
    ]  # fmt: skip
    positions = [result.err.index(flag) for flag in flags]
    assert positions == sorted(positions)
    for number, flag in enumerate(flags, start=1):
        assert f"{number}. {flag}" in result.err


def test_a_base_model_that_does_not_exist(run, fit_args, tmp_path) -> None:
    for name in ("/nowhere/model", "nobody/no-such-model", str(tmp_path)):
        result = run(*fit_args, "--model.base_model", name)
        assert result.status == 1 and "Traceback" not in result.err
        assert "model.base_model" in result.err and name in result.err


def test_a_warm_up_longer_than_the_run_is_shortened_with_a_warning(run, fit_args) -> None:
    result = run(*fit_args, "--model.warmup_steps", 100)
    assert result.status == 0 and "shortened to 1" in result.err


def test_validate_measures_without_training(run, fit_args, tmp_path) -> None:
    result = run("validate", *fit_args[1:])
    assert result.status == 0, result.err
    assert "val_loss" in result.out and "No adapter is given" in result.err
    assert not (tmp_path / "run" / "adapter").exists()


def test_test_updates_metrics_with_generated_sources(run, fit_args) -> None:
    result = run(
        "test", *fit_args[1:], "--model.metrics", '{"edits": {"class_path": "torchmetrics.text.EditDistance"}}',
        "--generation.max_tokens", 5,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "test_loss" in result.out and "test_edits" in result.out


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch_size(fit_args, tmp_path) -> None:
    from safetensors.torch import load_file

    args = [*fit_args, "--model.adapter.lora_dropout", 0, "--model.learning_rate", 1e-2]
    alone = outside(*args, "--data.batch_size", 8, "--run_dir", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    both = outside(*args, "--data.batch_size", 4, "--trainer.devices", 2, "--trainer.strategy", "ddp")
    assert both.returncode == 0, both.stderr
    one, two = (load_file(tmp_path / name / "adapter/last/adapter_model.safetensors") for name in ("one", "run"))
    assert any(value.any() for name, value in one.items() if "lora_B" in name)
    for name in one:
        # Adam divides by the gradient's size, so where that is next to nothing a rounding error can turn the sign.
        assert (two[name] - one[name]).norm() <= 0.02 * one[name].norm()


def test_a_run_stops_early_when_nothing_improves(run, fit_args) -> None:
    result = run(*fit_args, "--trainer.max_epochs", 6, "--early_stopping.patience", 2, "--early_stopping.min_delta", 10)
    assert result.status == 0, result.err
    assert "validation at step 12" in result.err and "validation at step 16" not in result.err
    again = run(*fit_args, "--trainer.max_epochs", 6, "--early_stopping.patience", 2, "--early_stopping.min_delta", 10,
                "--ckpt_path", "last")  # fmt: skip
    assert again.status == 0 and "step 13" not in again.err, again.err
    more = run(*fit_args, "--trainer.max_epochs", 4, "--early_stopping.patience", 9, "--ckpt_path", "last")
    assert more.status == 0 and "step 16/16" in more.err, more.err
    unvalidated = run(*fit_args, "--data.val_fraction", 0, "--run_dir", f"{fit_args[6]}-unvalidated")
    assert unvalidated.status == 0, unvalidated.err


@pytest.fixture
def fitted(run, fit_args, tmp_path):
    assert run(*fit_args, "--trainer.max_steps", 1).status == 0
    return [
        "predict", "--model.base_model", fit_args[4], "--model.adapter_path", tmp_path / "run",
        "--run_dir", tmp_path / "run", "--data.eval_batch_size", 2, "--generation.max_tokens", 6,
        "--trainer.accelerator", "cpu", "--data.predict_path",
    ]  # fmt: skip


def results(tmp_path):
    return json.loads((tmp_path / "run/predictions/predictions.json").read_text("utf-8"))


def without_seconds(results):
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


def test_predict_accepts_a_record_a_pair_or_a_list(run, fitted, tmp_path, pairs) -> None:
    record = pairs[0]["input"]
    for number, content in enumerate((record, {"input": record}, [{"input": record}, record])):
        path = tmp_path / f"new{number}.json"
        path.write_text(json.dumps(content))
        output = tmp_path / str(number) / "out.json"
        result = run(*fitted, path, "--predict.output", output)
        assert result.status == 0, result.err
        found = json.loads(output.read_text("utf-8"))
        assert [item["input"] for item in found] == [record] * (2 if number == 2 else 1)
        assert all(isinstance(item["generated_output"], str) for item in found)
        source = output.parent / "0000-rain-gauge-network-for-hill-farms.typ"
        assert source.read_text("utf-8") == found[0]["generated_output"]


def test_an_interrupted_prediction_resumes_where_it_stopped(run, fitted, tmp_path, pairs) -> None:
    straight = tmp_path / "straight.json"
    assert run(*fitted, SAMPLES, "--predict.output", straight).status == 0
    stopped = outside(*fitted, SAMPLES, *callback("KillWhilePredicting", batches=2))
    assert stopped.returncode == -9, stopped.stderr
    # killed when the second batch (of 4 x 2 records) was generated and not yet written
    assert [item["input"] for item in results(tmp_path)] == [pair["input"] for pair in pairs[:8]]
    resumed = run(*fitted, SAMPLES)
    assert resumed.status == 0 and "8 of 12 documents already exist" in resumed.err
    assert without_seconds(results(tmp_path)) == without_seconds(json.loads(straight.read_text("utf-8")))
    again = run(*fitted, SAMPLES)
    assert again.status == 0 and "12 of 12 documents already exist" in again.err


def test_a_prediction_never_mixes_settings_or_records(run, fitted, tmp_path, pairs) -> None:
    assert run(*fitted, SAMPLES).status == 0
    before = results(tmp_path)
    other = run(*fitted, SAMPLES, "--generation.temperature", 0.1)
    assert other.status == 1 and "generation.temperature" in other.err and "overwrite" in other.err
    records = tmp_path / "other.json"
    records.write_text(json.dumps([pairs[3]["input"]]))
    wrong = run(*fitted, records)
    assert wrong.status == 1 and "other records" in wrong.err
    assert results(tmp_path) == before
    assert run(*fitted, records, "--predict.overwrite", "true").status == 0
    assert len(results(tmp_path)) == 1


def test_a_cut_off_document_is_reported(run, fitted, tmp_path, pairs) -> None:
    result = run(*fitted, SAMPLES)
    assert (
        "6 tokens" in result.err
        and "cut off at the token limit: raise" in result.err
        and "--generation.max_tokens" in result.err
    )
    assert all(item.get("finish_reason") == "length" for item in results(tmp_path))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [("nowhere", "is not a directory"), (".", "contains no adapter"), ("pickled", "safetensors")],
)
def test_adapters_that_cannot_be_used(run, fitted, tmp_path, adapter, message) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/adapter_config.json").write_text("{}")
    (tmp_path / "pickled/adapter_model.bin").write_bytes(b"")
    index = next(i for i, a in enumerate(fitted) if a == "--model.adapter_path") + 1
    directory = tmp_path / "empty" if adapter == "." else tmp_path / adapter
    if adapter == ".":
        directory.mkdir()
    fitted[index] = directory
    result = run(*fitted, SAMPLES)
    assert result.status == 1 and message in result.err and "Traceback" not in result.err


def test_an_adapter_of_another_base_model(run, fitted, tmp_path) -> None:
    from benchmarks.nano.tiny_model import make_tiny_model

    fitted[2] = make_tiny_model(tmp_path / "larger", ["other text"], vocab_size=512, hidden_size=128)
    result = run(*fitted, SAMPLES)
    assert result.status == 1 and "does not fit the base model" in result.err and "--model.base_model" in result.err


@pytest.mark.parametrize(("setting", "value"), [("temperature", -1), ("top_p", 0), ("max_tokens", 0), ("top_k", -2)])
def test_generation_settings_out_of_range(run, fitted, setting, value) -> None:
    result = run(*fitted, SAMPLES, f"--generation.{setting}", value)
    assert result.status != 0 and setting in result.err and "Traceback" not in result.err


def test_records_to_predict_are_validated(run, fitted, tmp_path) -> None:
    path = tmp_path / "new.json"
    path.write_text('[{"starting_page": -1}]')
    result = run(*fitted, path)
    assert result.status == 1 and "record 0" in result.err and "'project_title' is missing" in result.err
