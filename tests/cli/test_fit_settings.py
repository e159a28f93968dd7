"""Settings of fit that can't work are refused in one sentence, and a run that diverges says so."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer.max_epochs", "-5"], "--trainer.max_epochs: must be -1 or more, not -5."),
        (["--trainer.max_epochs", "-1"], "--trainer.max_epochs: -1 is a run without an end. Limit it with"),
        (["--trainer.max_steps", "-2"], "--trainer.max_steps: must be -1 or more"),
        (["--trainer.accumulate_grad_batches", "0"], "--trainer.accumulate_grad_batches: must be 1 or more, not 0."),
        (["--trainer.check_val_every_n_epoch", "0"], "--trainer.check_val_every_n_epoch: must be 1 or more"),
        (["--trainer.gradient_clip_val", "-1"], "--trainer.gradient_clip_val: must be 0 or more"),
        (["--trainer.limit_train_batches", "0"], "--trainer.limit_train_batches: must be above 0, not 0."),
        (["--trainer.val_check_interval", "0.0"], "--trainer.val_check_interval: must be above 0"),
        (["--trainer.devices", "0"], "Lightning refuses these settings: `Trainer(devices="),
        (["--trainer.limit_val_batches", "-1"], "limit_val_batches"),
        (["--seed_everything", "-1"], "--seed_everything: must be from 0 to 4294967295, not -1."),
        (["--seed_everything", "99999999999999"], "--seed_everything: must be from 0 to 4294967295"),
        (["--early_stopping.patience", "-1"], "--early_stopping.patience: must be 0 or more, not -1."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_in_one_sentence(run, fit_args, flags, message) -> None:
    result = run(*fit_args, *flags)
    assert result.status == 1 and message in result.err, result.err
    assert "Traceback" not in result.err and len(result.err.splitlines()) <= 3


def test_a_share_of_batches_that_is_none_is_refused_without_a_traceback(run, fit_args) -> None:
    result = run(*fit_args, "--trainer.limit_train_batches", "0.0001")
    assert result.status == 1 and "Lightning refuses these settings: " in result.err
    assert "limit_train_batches" in result.err and "Traceback" not in result.err


def test_the_advice_for_samples_that_are_all_too_long_names_another_policy(run, fit_args) -> None:
    result = run(*fit_args, "--data.max_length", 1, "--data.overlength", "truncate_text")
    assert result.status == 1 and "Use --data.max_length " in result.err
    assert "truncate_text" not in result.err.splitlines()[-1]


def test_a_run_that_diverges_is_stopped_before_its_weights_are_saved(run, fit_args, tmp_path) -> None:
    result = run(*fit_args, "--model.learning_rate", "1e30", "--data.batch_size", 8, "--trainer.max_epochs", 1)
    assert result.status == 1 and "Traceback" not in result.err, result.err
    assert "val_loss is not finite (nan) after step 1: the weights have diverged." in result.err
    assert "lower --model.learning_rate" in result.err and "leveled off" not in result.err
    assert not list((tmp_path / "run").glob("adapter/*/*.safetensors"))


def test_a_run_that_continues_after_diverging_says_so_in_its_final_reading(
    run, fit_args, tmp_path, monkeypatch
) -> None:
    (tmp_path / "diverging.py").write_text(
        "from lightning.pytorch import Callback\n\n\n"
        "class Diverge(Callback):\n"
        "    def on_validation_start(self, trainer, pl_module):\n"
        "        if trainer.current_epoch == 1:\n"
        "            for parameter in pl_module.parameters():\n"
        "                if parameter.requires_grad:\n"
        "                    parameter.data.fill_(float('inf'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    callback = "--trainer.callbacks+=diverging.Diverge"
    skipped = run(*fit_args, callback, "--watchdog.non_finite", "skip")
    assert skipped.status == 0, skipped.err
    assert "warning: val_loss is not finite" in skipped.err and "leveled off" not in skipped.err
    assert "val_loss is not finite (nan) at epoch 2.00: the weights have diverged; adapter/best is from" in skipped.err
    stopped = run(*fit_args, callback, "--run_dir", tmp_path / "stopped")
    assert stopped.status == 1 and "one that an earlier validation saved is intact" in stopped.err
    weights = load_file(tmp_path / "stopped" / "adapter" / "last" / "adapter_model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
