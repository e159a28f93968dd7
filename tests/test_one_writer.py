"""Two commands never write the same run, results or shards: real processes, of which the second is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import SAMPLES
from typst_lit.files import atomic_write
from typst_lit.inference.outputs import file_name
from typst_lit.locking import LOCK_NAME, FileLock


def start(args: Sequence[object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "typst_lit", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@contextmanager
def running(args: Sequence[object], lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs a command until it has a lock, and kills it at the end."""
    process = start(args)
    try:
        while not lock.exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_fit_is_refused_until_the_first_is_killed(run, fit_args, tmp_path) -> None:
    args = [*fit_args, "--trainer.max_epochs", 500, "--early_stopping.patience", 500]
    with running(args, tmp_path / "run" / LOCK_NAME) as first:
        for more in ([], ["--ckpt_path", "last"]):
            second = run(*args, *more)
            assert second.status == 1 and f"process {first.pid} on {os.uname().nodename} is writing it" in second.err
            assert "--run_dir" in second.err and "Traceback" not in second.err
        while not any((tmp_path / "run" / "checkpoints").glob("*.json")):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.02)
    resumed = run(*fit_args, "--trainer.max_epochs", 500, "--ckpt_path", "last", "--trainer.max_steps", 1)
    assert "is writing it" not in resumed.err and "Traceback" not in resumed.err, resumed.err


def test_of_two_fits_that_start_together_one_trains(fit_args, tmp_path) -> None:
    processes = [start(fit_args) for _ in range(2)]
    output = [process.communicate()[0] for process in processes]
    statuses = [process.returncode for process in processes]
    assert sorted(statuses) == [0, 1], output
    refusal = output[statuses.index(1)]
    assert "is writing it" in refusal or "already contains" in refusal, refusal
    assert "Traceback" not in refusal
    steps = [path.stem for path in sorted((tmp_path / "run" / "checkpoints").glob("*-step-*.ckpt"))]
    assert steps == ["00001-step-4", "00002-step-8"]


def test_a_second_generate_is_refused_and_the_first_is_not_disturbed(run, tiny_model, tmp_path) -> None:
    output = tmp_path / "results.json"
    args = ["generate", "--base-model", tiny_model, "--no-4bit", "--input", SAMPLES, "--output", output]
    args += ["--max-tokens", 400, "--temperature", 0, "--batch-size", 2]
    with running(args, tmp_path / f"{LOCK_NAME}-results.json") as first:
        for more in ([], ["--overwrite"]):
            second = run(*args, *more)
            assert second.status == 1 and f"process {first.pid} on" in second.err, second.err
            assert "--output" in second.err and "Traceback" not in second.err
        assert first.wait(60) == 0
    assert len(json.loads(output.read_text())) == len(json.loads(SAMPLES.read_text()))
    assert not [*tmp_path.glob(f"{LOCK_NAME}*")]


def test_predict_and_shards_are_refused_as_well(run, fit_args, tiny_model, tmp_path) -> None:
    output, shards = tmp_path / "results.json", tmp_path / "shards"
    predict = ["predict", *fit_args[1:], "--data.predict_path", SAMPLES, "--predict.output", output]
    on_ray = ["generate", "--engine", "ray", "--base-model", tiny_model, "--input", SAMPLES, "--output", shards]
    shards.mkdir()
    with FileLock(output, ""), FileLock(shards, ""):
        for command, flag in ((predict, "--predict.output"), (on_ray, "--output")):
            refused = run(*command)
            assert refused.status == 1 and f"process {os.getpid()} on" in refused.err, refused.err
            assert flag in refused.err and "Traceback" not in refused.err
    assert [*shards.iterdir()] == [] and not output.exists()


def test_the_lock_is_released_when_a_command_fails(run, fit_args, tmp_path) -> None:
    args = ["predict", *fit_args[1:], "--data.predict_path", SAMPLES, "--generation.max_tokens", 4]
    args += ["--data.eval_batch_size", 12, "--predict.compile", "false"]
    mine = tmp_path / "run" / "predictions" / file_name(3, json.loads(SAMPLES.read_text())[3]["input"])
    atomic_write(mine, b"mine")
    refused = run(*args)
    assert refused.status == 1 and f"{mine}: already exists" in refused.err and mine.read_bytes() == b"mine"
    mine.unlink()
    assert run(*args).status == 0
    assert not [*tmp_path.rglob(f"{LOCK_NAME}*")]
