"""Checkpoints on disk are intact or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from typst_lit.callbacks.checkpoint_files import (
    LAST,
    AtomicCheckpointIO,
    copy_checkpoint,
    integrity_error,
    keep_newest,
    newest_intact,
    next_path,
)
from typst_lit.errors import UserError
from typst_lit.manifest import MANIFEST_NAME

SAVER = """
import sys, torch
from pathlib import Path
from typst_lit.callbacks.checkpoint_files import AtomicCheckpointIO, keep_newest, next_path
directory, step = Path(sys.argv[1]), 0
while True:
    step += 1
    checkpoint = {"global_step": step, "weights": torch.full((500_000,), float(step))}
    AtomicCheckpointIO().save_checkpoint(checkpoint, next_path(directory, step))
    keep_newest(directory, 2)
    print(step, flush=True)
"""


def save(directory, step, **values):
    path = next_path(directory, step)
    AtomicCheckpointIO().save_checkpoint({"global_step": step, **values}, path)
    return path


def test_a_killed_save_leaves_an_intact_checkpoint(tmp_path) -> None:
    for kill_after_s in (0.005, 0.013, 0.029):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env={**os.environ}
        )
        assert process.stdout is not None
        reported = int(process.stdout.readline())
        time.sleep(kill_after_s)
        process.send_signal(signal.SIGKILL)
        reported = max([reported, *map(int, process.stdout.read().split())])
        process.wait()
        path, _ = newest_intact(tmp_path)
        assert path is not None
        loaded = AtomicCheckpointIO().load_checkpoint(path)
        assert torch.equal(loaded["weights"], torch.full((500_000,), float(loaded["global_step"])))
        assert loaded["global_step"] >= reported  # what was reported as saved exists
        assert (tmp_path / LAST).resolve().is_file()


def test_the_newest_intact_checkpoint_is_found_and_the_damaged_ones_are_named(tmp_path) -> None:
    intact, damaged, cut, unfinished = (save(tmp_path, step, weights=torch.zeros(1000)) for step in (1, 2, 3, 4))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1])
    unfinished.with_suffix(".json").unlink()
    newest, errors = newest_intact(tmp_path)
    assert newest == intact and len(errors) == 3
    for path, error, word in zip(
        (unfinished, cut, damaged), errors, ("no manifest", "bytes instead", "its checksum"), strict=True
    ):
        assert str(path) in error and word in error


def test_a_flipped_byte_or_a_cut_anywhere_is_detected(tmp_path) -> None:
    path = save(tmp_path, 1, weights=torch.arange(5000.0))
    intact = path.read_bytes()
    generator = random.Random(0)
    for _ in range(40):
        position = generator.randrange(len(intact))
        flipped = bytes([intact[position] ^ (1 << generator.randrange(8))])
        path.write_bytes(intact[:position] + flipped + intact[position + 1 :])
        assert integrity_error(path)
        path.write_bytes(intact[:position])
        assert integrity_error(path)
    path.write_bytes(intact)
    assert integrity_error(path) is None
    for broken in (b"", b"{", b"[]", b'{"bytes": "x"}'):
        path.with_suffix(".json").write_bytes(broken)
        assert integrity_error(path)


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_so(tmp_path) -> None:
    old = save(tmp_path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # a write past it fails, as on a full disk
    try:
        with pytest.raises(UserError, match=rf"could not be written.*{old.name}, is intact"):
            save(tmp_path, 2, weights=torch.zeros(10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert newest_intact(tmp_path) == (old, [])
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {old.name, old.with_suffix(".json").name, LAST, MANIFEST_NAME}


def test_the_newest_are_kept_and_so_are_their_copies(tmp_path) -> None:
    for step in range(1, 6):
        path = save(tmp_path / "run", step, run_id="run a")
        keep_newest(tmp_path / "run", 2)
        copy_checkpoint(path, tmp_path / "drive", 1, "run a")
    assert [path.name for path in sorted((tmp_path / "run").glob("0*.ckpt"))] == [
        "00004-step-4.ckpt",
        "00005-step-5.ckpt",
    ]
    assert (tmp_path / "run" / LAST).resolve() == path
    copied, errors = newest_intact(tmp_path / "drive")
    assert copied is not None and copied.read_bytes() == path.read_bytes() and not errors
    assert len(list((tmp_path / "drive").glob("[0-9]*"))) == 2


def test_a_checkpoint_that_would_run_code_is_rejected(tmp_path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"run": os.system}, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        AtomicCheckpointIO().load_checkpoint(path)
