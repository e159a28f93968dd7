"""The processes that compile: what they can access, when they are replaced, and that their death loses nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from typst_lit.typesetting import process as process_module
from typst_lit.typesetting.typesetter import Typesetter
from typst_lit.typesetting.worker import Worker, WorkerSettings


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


def test_an_interrupted_compilation_does_not_answer_the_next_one() -> None:
    with Typesetter(workers=1) as typesetter:
        typesetter.compile("= Start")
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            typesetter.compile("#for i in range(100000) { for j in range(100000) { } }")
        assert typesetter.compile("= Second").text == "Second"


def test_memory_used_by_earlier_documents_does_not_fail_the_next() -> None:
    sources = ["#lorem(200000)" if number % 2 else f"Number {number}" for number in range(12)]
    separately = []
    for source in sources:
        with Typesetter(workers=1, memory_mib=640, max_pages=2000) as typesetter:
            separately.append(typesetter.compile(source).ok)
    with Typesetter(workers=1, memory_mib=640, max_pages=2000) as typesetter:
        assert [result.ok for result in typesetter.compile_many(sources)] == separately


def test_a_panic_of_the_compiler_fails_the_document_and_restarts_the_process(tmp_path) -> None:
    """No document is known that makes this compiler panic, so the test raises the exception of one."""

    class PanicError(BaseException):
        pass

    class Broken:
        def compile_with_warnings(self, source: bytes) -> None:
            raise PanicError("index out of bounds")

    worker = Worker(tmp_path, WorkerSettings())
    worker.compiler = Broken()  # type: ignore[assignment]
    answer = worker.compile(b"= A", None)
    assert not answer["ok"] and answer["needs_restart"] and "index out of bounds" in answer["diagnostics"][0].message


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
