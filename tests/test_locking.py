"""One writer per file and directory, between real processes."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from typst_lit.errors import UserError
from typst_lit.locking import LOCK_NAME, FileLock, check_unlocked

HOLDER = """
import os, sys, time
from pathlib import Path
from typst_lit.locking import FileLock
lock = FileLock(Path(sys.argv[1]), "")
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, b"forked")
    time.sleep(60)
    os._exit(0)
os.read(read, 10)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of a file, and has a child that outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "file")],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, holder) -> None:
    path = tmp_path / "file"
    message = rf"file: process {holder.pid} on {os.uname().nodename} is writing it \(since .*\)\. Wait\."
    for attempt in (FileLock, check_unlocked):
        with pytest.raises(UserError, match=message):
            attempt(path, "Wait.")
    holder.kill()
    holder.wait()
    assert (tmp_path / f"{LOCK_NAME}-file").exists()  # and its child is alive
    check_unlocked(path, "Wait.")
    with FileLock(path, "Wait."):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_lock_is_released_by_errors_and_with_its_object(tmp_path) -> None:
    with pytest.raises(RuntimeError), FileLock(tmp_path, ""):
        raise RuntimeError
    lock = FileLock(tmp_path, "")
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        FileLock(tmp_path, "")
    del lock
    gc.collect()
    for name in ("a", "b" * 250):
        with FileLock(tmp_path / name, ""), FileLock(tmp_path, ""):
            assert len([*tmp_path.iterdir()]) == 2
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_the_file_system_has_no_locks_there_is_one_warning(tmp_path, monkeypatch, caplog, number) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), FileLock(tmp_path, ""), FileLock(tmp_path, ""):
        assert not [*tmp_path.iterdir()]
    assert caplog.text.count("has no locks") == 1


def test_many_processes_take_turns(tmp_path) -> None:
    code = """
import sys, time
from pathlib import Path
from typst_lit.errors import UserError
from typst_lit.locking import FileLock
path, done = Path(sys.argv[1]), 0
while done < 30:
    try:
        with FileLock(path, ""):
            value = int(path.read_text())
            time.sleep(0.0005)
            path.write_text(str(value + 1))
            done += 1
    except UserError:
        time.sleep(0.0005)
"""
    path = tmp_path / "count"
    path.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    deadline = time.monotonic() + 60
    assert [process.wait(deadline - time.monotonic()) for process in processes] == [0, 0, 0]
    assert path.read_text() == "90" and [*tmp_path.iterdir()] == [path]
