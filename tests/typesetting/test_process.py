"""The processes that compile: what they can access, when they are replaced, and that their death loses nothing."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from typst_lit.errors import UserError
from typst_lit.typesetting import process as process_module
from typst_lit.typesetting.channel import Channel
from typst_lit.typesetting.typesetter import Typesetter


def test_closing_leaves_neither_processes_nor_directories(children) -> None:
    before = set(Path(process_module.tempfile.gettempdir()).glob("typst-lit-*"))
    typesetter = Typesetter(workers=2)
    assert children() == []  # nothing starts before it is needed
    list(typesetter.compile_many(["= A", '#image("a/b.png")', "#for i in range(3) [x]"]))
    roots = set(Path(process_module.tempfile.gettempdir()).glob("typst-lit-*")) - before
    assert len(roots) == len(children()) > 0
    assert all([child.name for child in root.iterdir()] == [".packages"] for root in roots)
    typesetter.close()
    assert children() == [] and not any(root.exists() for root in roots)


def test_killing_processes_loses_no_document(children) -> None:
    sources = [f"= Document {number}\n#lorem(3000)" for number in range(60)]
    with Typesetter(workers=2) as typesetter:
        results = typesetter.compile_many(sources)
        completed = [next(results)]
        for number, result in enumerate(results):
            completed.append(result)
            if number in (5, 20, 40):
                for child in children():
                    child.send_signal(signal.SIGKILL)
    assert [result.text.split("\n")[0] for result in completed] == [f"Document {number}" for number in range(60)]


def test_a_process_is_replaced_after_its_maximum_number_of_documents(children, monkeypatch) -> None:
    monkeypatch.setattr(process_module, "MAX_COMPILES_PER_PROCESS", 2)
    with Typesetter(workers=1) as small:
        pids = []
        for _ in range(5):
            assert small.compile("= A").ok
            pids += [child.pid for child in children()]
    assert len(set(pids)) == 3


def test_workers_end_when_the_parent_is_killed(tmp_path) -> None:
    code = (
        "import time\nfrom typst_lit.typesetting.typesetter import Typesetter\n"
        "t = Typesetter(workers=1)\nt.compile('= A')\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    worker = psutil.Process(process.pid).children()[0]
    process.kill()
    process.wait()
    worker.wait(10)


def test_a_worker_has_neither_network_nor_environment(children, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with Typesetter(workers=1) as typesetter:
        isolation = typesetter.isolation()
        (worker,) = children()
        assert "HF_TOKEN" not in worker.environ()
        if isolation["network"]:
            child, parent = (Path(f"/proc/{pid}/ns/net").readlink() for pid in (worker.pid, os.getpid()))
            assert child != parent
        assert isolation["memory"] or sys.platform != "linux"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Lets SIGINT interrupt the test, also in a process that was started with the signal ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_compilation_does_not_answer_the_next_one() -> None:
    with Typesetter(workers=1) as typesetter:
        typesetter.compile("= Start")
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            typesetter.compile("#for i in range(100000) { for j in range(100000) { } }")
        assert typesetter.compile("= Second").text == "Second"


def test_memory_used_by_earlier_documents_does_not_fail_the_next(children) -> None:
    large = "#lorem(150000)"
    with Typesetter(workers=1, memory_mib=512, max_pages=2000) as typesetter:
        assert typesetter.compile(large).ok
        before = children()
        results = [typesetter.compile(source) for source in (large + " ", "= Small", large)]
        assert children() != before
    assert [result.error for result in results] == ["", "", ""]


def test_a_process_that_is_stopped_before_a_document_is_killed_at_the_deadline(children) -> None:
    """Stopped as by SIGSTOP or a frozen control group. The socket's buffer does not hold the document."""
    with Typesetter(workers=1, timeout_s=1) as typesetter:
        typesetter.compile("= Start")
        (child,) = children()
        child.suspend()
        result = typesetter.compile("x " * 1_500_000)
        assert "longer than 1 s" in result.error and result.seconds < 5
        assert typesetter.compile("= Next").ok and child not in children()


def test_a_process_that_is_stopped_in_its_answer_is_killed_at_the_deadline(children, monkeypatch) -> None:
    """Stopped after the first message of its answer. The socket's buffer does not hold the PDF and the images."""
    receive = Channel.receive

    def receive_and_stop(channel: Channel, deadline: float | None = None) -> bytes:
        message = receive(channel, deadline)
        child.suspend()
        return message

    with Typesetter(workers=1, timeout_s=2) as typesetter:
        typesetter.compile("= Start")
        (child,) = children()
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "receive", receive_and_stop)
            result = typesetter.compile("#for i in range(6) [#lorem(300) #pagebreak()]", ppi=144)
        assert "longer than 2 s" in result.error and result.seconds < 6
        assert typesetter.compile("= Next").ok and child not in children()


def test_no_temporary_directory_is_an_error_and_later_documents_compile(children, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(process_module.tempfile, "tempdir", str(tmp_path / "gone"))
    before = _file_handles()
    with Typesetter(workers=1) as typesetter:
        for compile in (typesetter.compile, lambda source: list(typesetter.compile_many([source]))):
            with pytest.raises(UserError, match=r"No temporary directory can be created: .*gone.* TMPDIR"):
                compile("= A")
        assert children() == [] and _file_handles() == before
        (tmp_path / "gone").mkdir()
        assert typesetter.compile("= A").ok


@pytest.mark.parametrize("num_free", range(8))
def test_no_file_handles_are_an_error_and_later_documents_compile(children, num_free) -> None:
    """A process takes 6 handles while it starts, and any of them may be the one too many."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = _file_handles()
    free = [number for number in range(max(before) + 10) if number not in before]
    with Typesetter(workers=1) as typesetter:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[num_free], limits[1]))
        try:
            succeeds = typesetter.compile("= A").ok
        except UserError as error:
            succeeds = False
            assert "Too many open files" in str(error) or "does not start" in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert succeeds or (children() == [] and _file_handles() == before)
        assert not succeeds or num_free >= 5
        assert typesetter.compile("= A").ok


def _file_handles() -> list[int]:
    *handles, _ = sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())  # the last one is that of iterdir
    return handles


NO_PROCESSES = """
import resource
from typst_lit.errors import UserError
from typst_lit.typesetting.typesetter import Typesetter

with Typesetter(workers=1) as typesetter:
    limits = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, limits[1]))
    for compile in (typesetter.compile, lambda source: list(typesetter.compile_many([source]))):
        try:
            compile("= A")
        except UserError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_NPROC, limits)
    print(sorted(typesetter.isolation()))
"""


def test_no_processes_are_an_error_and_later_ones_start() -> None:
    command = [sys.executable, "-c", NO_PROCESSES]
    if os.getuid() == 0:  # the limit does not apply to root
        if not (setpriv := shutil.which("setpriv")):
            pytest.skip("needs setpriv, or a user who is not root")
        capability = "+dac_override"  # Python may be in a directory of root
        options = ["--reuid=54321", "--clear-groups", f"--inh-caps={capability}", f"--ambient-caps={capability}"]
        command = [setpriv, *options, *command]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "process can't be started" in lines[0] and "No thread can be started" in lines[1]
    assert all("ulimit -u" in line for line in lines[:2]) and lines[2] == "['memory', 'network']"


PANICS = {
    "an assertion of the text shaper": ("a" + "\u0301" * 1_000_000, "j < i"),
    "an index inside a character": ("\U0001f468\u200d" * 200_000, "not a char boundary"),
}


@pytest.mark.parametrize(("source", "message"), PANICS.values(), ids=PANICS)
def test_a_panic_of_the_compiler_fails_the_document_and_restarts_the_process(children, source, message) -> None:
    with Typesetter(workers=1, timeout_s=60) as typesetter:
        assert typesetter.compile("= Before").ok
        (process,) = children()
        result = typesetter.compile(source)
        assert not result.ok and "the compiler failed" in result.error and message in result.error
        assert typesetter.compile("= After").text == "After" and process not in children()


@pytest.mark.slow
def test_random_kills_lose_and_repeat_no_document(children) -> None:
    rng = random.Random(0)
    finished, killed_pids = threading.Event(), []

    def kill() -> None:
        while not finished.wait(rng.uniform(0, 1)):
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                child = rng.choice(children())
                # Some are killed while they start, but not all, or nothing would ever be compiled.
                if time.time() - child.create_time() > rng.uniform(0, 2):
                    child.send_signal(signal.SIGKILL)
                    killed_pids.append(child.pid)

    with Typesetter(workers=2) as typesetter:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        sources = (f"= Document {number}\n#lorem(2000)" for number in range(2000))
        titles = [result.text.split("\n")[0] for result in typesetter.compile_many(sources)]
        finished.set()
        killer.join()
    assert titles == [f"Document {number}" for number in range(2000)]
    print(f"{len(killed_pids)} workers were killed")
    assert len(killed_pids) > 20
