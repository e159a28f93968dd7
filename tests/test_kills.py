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

KILLS = 50
EPOCHS = 120  # of 4 steps: more than so many lives get done


@pytest.fixture
def other_filesystem(tmp_path) -> Iterator[Path]:
    """A folder for temporary files on another file system than the run's, where there is one."""
    folder = Path("/dev/shm") / f"typst-lit-{os.getpid()}"
    if not folder.parent.is_dir():
        pytest.skip("there is no /dev/shm")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def killed_after(args: list[object], moment: str, chance: random.Random, folder: Path, tmpdir: str) -> str:
    """Starts a fit, kills it at a moment, and returns what it said.

    The moment is ``start`` (while it loads), ``step`` (within its steps) or ``save`` (while a checkpoint is written).
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "typst_lit", *map(str, args)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": tmpdir},
    )  # fmt: skip
    said: list[str] = []
    stepping = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith(("validation:", "Resuming after step")):
                stepping.set()

    listener = threading.Thread(target=listen)
    listener.start()
    if moment == "start":
        time.sleep(chance.uniform(0, 8))
    else:
        while not stepping.wait(0.05) and process.poll() is None:
            pass
        time.sleep(chance.uniform(0, 0.6))
    if moment == "save":
        until = time.monotonic() + 1
        while not list(folder.glob(".0*")) and process.poll() is None and time.monotonic() < until:
            pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    listener.join()
    return "".join(said)


@pytest.mark.slow
def test_fifty_kills_change_nothing(run, fit_args, tmp_path, other_filesystem) -> None:
    args = [
        *fit_args, "--trainer.max_epochs", EPOCHS, "--checkpoint.every_n_steps", 1,
        "--early_stopping.patience", EPOCHS,
    ]  # fmt: skip
    straight = run(*args, "--run_dir", tmp_path / "straight", *callback("SeeOrder", path=tmp_path / "order"))
    assert straight.status == 0, straight.err
    chance = random.Random(0)
    folder = tmp_path / "run/checkpoints"
    resumed = within = 0
    for number in range(KILLS):
        moment = "start" if number % 10 == 3 else ("save", "step")[number % 2]
        again = ["--ckpt_path", "last"] if any(folder.glob("*.json")) else []
        temporary = str(other_filesystem if number % 4 < 2 else tmp_path)
        said = killed_after([*args, *again], moment, chance, folder, temporary)
        assert "Traceback" not in said and "error:" not in said, said
        resumed += "Resuming after step" in said
        unvouched = [path for path in folder.glob("[0-9]*.ckpt") if not path.with_suffix(".json").is_file()]
        within += bool(unvouched or list(folder.glob(".0*")))
    last = run(*args, "--ckpt_path", "last", *callback("SeeOrder", path=tmp_path / "order-2"))
    assert last.status == 0 and resumed > KILLS // 2, last.err
    step = int(last.err.split("Resuming after step ")[1].split(",")[0])
    print(f"{KILLS} kills, {resumed} of them after a resume, {within} within a save; the last after step {step}")
    assert step < 4 * EPOCHS and within
    order, rest = ((tmp_path / name).read_text().splitlines() for name in ("order", "order-2"))
    assert len(rest) == len(order) - step and order[step:] == rest
    one, other = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("straight", "run")
    )
    assert one["global_step"] == other["global_step"]
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    for name in ("best", "last"):
        paths = [
            tmp_path / run_name / "adapter" / name / "adapter_model.safetensors" for run_name in ("straight", "run")
        ]
        assert paths[0].read_bytes() == paths[1].read_bytes()
