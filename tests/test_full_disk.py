"""Disks that are full or read-only: one message, and nothing that was saved is lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SAMPLES


def digests(directory: Path) -> dict[Path, str]:
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[..., Path]]:
    """Returns a function that mounts a small file system, or changes its options."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()

    def mount(options: str) -> Path:
        call = ["mount", "-t", "tmpfs", "-o", options, "none", str(mount_point)]
        if subprocess.run(call, capture_output=True).returncode:
            pytest.skip("file systems can't be mounted here")
        return mount_point

    yield mount
    while subprocess.run(["umount", str(mount_point)], capture_output=True).returncode == 0:
        pass


# TensorBoard's writer runs in a thread of its own, which ends when the disk is full
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kib", [8, 60, 150, 220, 300])
def test_a_fit_on_a_full_disk(run, fit_args, disk, kib) -> None:
    """The disk is full when the settings, the curves, the adapter or a checkpoint are written."""
    root = disk(f"size={kib}k")
    result = run(*fit_args, "--run_dir", root / "run", "--trainer.max_epochs", 40)
    assert result.status == 1 and "Traceback" not in result.err, result.err
    assert sum(line.startswith("error:") for line in result.err.splitlines()) == 1 and "space" in result.err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_was_saved_before_the_disk_was_full_is_intact(run, fit_args, disk) -> None:
    root = disk("size=100m")
    args = [*fit_args, "--run_dir", root / "run"]
    assert run(*args).status == 0
    before = digests(root)
    filler = root / "filler"
    with pytest.raises(OSError, match="space"), filler.open("wb") as stream:
        while True:
            stream.write(b"x" * 4096)
            stream.flush()
    result = run(*args, "--trainer.max_epochs", 4, "--ckpt_path", "last")
    assert result.status == 1 and "Traceback" not in result.err and "space" in result.err, result.err
    after = digests(root)
    assert all(after[path] == digest for path, digest in before.items() if path.suffix in (".ckpt", ".safetensors"))
    filler.unlink()
    assert run(*args, "--trainer.max_epochs", 4, "--ckpt_path", "last").status == 0


def test_a_prediction_on_a_full_disk_resumes_where_it_stopped(run, fit_args, tiny_model, tmp_path, disk) -> None:
    root = disk("size=24k")
    args = [
        "predict", "--model.base_model", tiny_model, "--data.predict_path", SAMPLES, "--run_dir", root,
        "--generation.max_tokens", 300, "--generation.temperature", 0, "--trainer.accelerator", "cpu",
        "--data.eval_batch_size", 2,
    ]  # fmt: skip
    stopped = run(*args)
    assert stopped.status == 1 and "Traceback" not in stopped.err and "space" in stopped.err, stopped.err
    kept = json.loads((root / "predictions/predictions.json").read_text())
    disk("size=10m,remount")
    assert run(*args).status == 0
    complete = json.loads((root / "predictions/predictions.json").read_text())
    assert complete[: len(kept)] == kept and len(complete) == 12


def test_a_read_only_directory(run, fit_args, disk) -> None:
    root = disk("size=10m")
    disk("size=10m,remount,ro")
    result = run(*fit_args, "--run_dir", root / "run")
    assert result.status == 1 and "Traceback" not in result.err and str(root) in result.err, result.err
