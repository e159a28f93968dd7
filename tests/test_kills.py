"""A real fit that is killed again and again, and what it ends with."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.test_fit import callback, same
from typst_lit.files import TEMPORARY_PREFIX

KILLS = 50
EPOCHS = 120  # of 4 steps: more than the killed runs complete


@pytest.fixture
def other_filesystem(tmp_path) -> Iterator[Path]:
    """A directory for temporary files on another file system than the run's, if there is one."""
    directory = Path("/dev/shm") / f"typst-lit-{os.getpid()}"
    if not directory.parent.is_dir():
        pytest.skip("/dev/shm does not exist")
    directory.mkdir()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def fit_and_kill(args: list[object], moment: str, generator: random.Random, directory: Path, tmpdir: str) -> str:
    """Starts a fit, kills it at a moment, and returns its standard error.

    The moment is ``start`` (while it loads), ``step`` (within its steps) or ``save`` (while a checkpoint is written).
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "typst_lit", *map(str, args)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": tmpdir},
    )  # fmt: skip
    lines: list[str] = []
    stepping = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith(("validation:", "Resuming after step")):
                stepping.set()

    listener = threading.Thread(target=listen)
    listener.start()
    if moment == "start":
        time.sleep(generator.uniform(0, 8))
    else:
        while not stepping.wait(0.05) and process.poll() is None:
            pass
        time.sleep(generator.uniform(0, 0.6))
    if moment == "save":
        deadline = time.monotonic() + 1
        while process.poll() is None and time.monotonic() < deadline:
            if any(directory.glob(f"{TEMPORARY_PREFIX}*")):
                break
    process.send_signal(signal.SIGKILL)
    process.wait()
    listener.join()
    return "".join(lines)


@pytest.mark.slow
def test_fifty_kills_change_nothing(run, fit_args, tmp_path, other_filesystem) -> None:
    args = [
        *fit_args, "--trainer.max_epochs", EPOCHS, "--checkpoint.every_n_steps", 1,
        "--early_stopping.patience", EPOCHS,
    ]  # fmt: skip
    uninterrupted = run(
        *args, "--run_dir", tmp_path / "uninterrupted", *callback("RecordOrder", path=tmp_path / "order")
    )
    assert uninterrupted.status == 0, uninterrupted.err
    generator = random.Random(0)
    directory = tmp_path / "run/checkpoints"
    notes = {path: path.encode() for path in ("notes.txt", "checkpoints/notes.md", "adapter/best/notes.md")}
    num_resumed = num_unfinished = 0
    for number in range(KILLS):
        moment = "start" if number % 10 == 3 else ("save", "step")[number % 2]
        again = ["--ckpt_path", "last"] if any(directory.glob("*.json")) else []
        temporary = str(other_filesystem if number % 4 < 2 else tmp_path)
        stderr = fit_and_kill([*args, *again], moment, generator, directory, temporary)
        assert "Traceback" not in stderr and "error:" not in stderr, stderr
        for name, content in notes.items():
            path = tmp_path / "run" / name
            if path.exists():
                assert path.read_bytes() == content
            elif path.parent.exists():
                path.write_bytes(content)
        num_resumed += "Resuming after step" in stderr
        incomplete = [path for path in directory.glob("[0-9]*.ckpt") if not path.with_suffix(".json").is_file()]
        num_unfinished += bool(incomplete or list(directory.glob(f"{TEMPORARY_PREFIX}*")))
    last = run(*args, "--ckpt_path", "last", *callback("RecordOrder", path=tmp_path / "order-2"))
    assert last.status == 0 and num_resumed > KILLS // 2, last.err
    step = int(last.err.split("Resuming after step ")[1].split(",")[0])
    print(f"{KILLS} kills, {num_resumed} after a resume, {num_unfinished} during a save; the last after step {step}")
    assert step < 4 * EPOCHS and num_unfinished
    assert all((tmp_path / "run" / name).read_bytes() == content for name, content in notes.items())
    order, rest = ((tmp_path / name).read_text().splitlines() for name in ("order", "order-2"))
    assert len(rest) == len(order) - step and order[step:] == rest
    expected, killed = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("uninterrupted", "run")
    )
    assert expected["global_step"] == killed["global_step"]
    assert all(same(expected[name], killed[name]) for name in ("state_dict", "optimizer_states"))
    for name in ("best", "last"):
        paths = [
            tmp_path / run_name / "adapter" / name / "adapter_model.safetensors"
            for run_name in ("uninterrupted", "run")
        ]
        assert paths[0].read_bytes() == paths[1].read_bytes()
