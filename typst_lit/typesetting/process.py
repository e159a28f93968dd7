"""The parent's side of a compiler process: starting it, sending documents, and finding out why it ended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict

from typst_lit.errors import UserError
from typst_lit.typesetting.channel import Channel
from typst_lit.typesetting.results import CompileResult, Diagnostic, PageText
from typst_lit.typesetting.worker import WorkerSettings

MAX_COMPILES_PER_PROCESS = 1000  # then a new process replaces it, because the compiler's cache only ever grows
MAX_START_ATTEMPTS = 3  # when something outside kills the process while it starts
STARTUP_TIMEOUT_S = 60.0
MAX_KILL_S = 10.0  # until a killed process has ended, unless the system keeps it
INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "FONTCONFIG_FILE", "FONTCONFIG_PATH", "XDG_DATA_DIRS", "TZ")
UNREACHABLE_PROXY = "http://127.0.0.1:9"  # the discard port
MORE_FILES = "Raise the limit of open files (ulimit -n)."
MORE_PROCESSES = "Raise the limit of processes (ulimit -u), or use fewer `typesetting.workers`."
_NO_DIRECTORY = "Set the environment variable TMPDIR to a directory that exists and has free space."
_START_HINTS = {
    errno.EMFILE: MORE_FILES,
    errno.ENFILE: MORE_FILES,
    errno.EAGAIN: MORE_PROCESSES,
    errno.ENOMEM: MORE_PROCESSES,
}


class CompilerStartError(UserError):
    """No compiler process can be started, whatever the document: the system or its limits do not permit it now."""


class ProcessDiedError(Exception):
    """A compiler process ended before it answered.

    Args:
        reason: why, as far as is known.
        killed: whether it was killed with SIGKILL by something outside.
    """

    def __init__(self, reason: str, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


class CompilerProcess:
    """A child process that compiles one document after another.

    It starts with `ensure_running`, and is replaced after `MAX_COMPILES_PER_PROCESS` documents or when it has died.

    Args:
        settings: limits and paths. Documents can only read a new temporary directory.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._num_compiled = 0
        self.isolation: dict[str, bool] = {}

    @property
    def running(self) -> bool:
        """Whether there is a process. It is stopped when a document has left it in an unknown state."""
        return self._process is not None

    def ensure_running(self) -> bool:
        """Starts the process unless it runs; returns whether it is new and has not compiled anything yet.

        Raises:
            CompilerStartError: when it does not start.
        """
        alive = self._process is not None and self._process.poll() is None
        if alive and self._num_compiled < MAX_COMPILES_PER_PROCESS:
            return self._num_compiled == 0
        for attempt in range(1, MAX_START_ATTEMPTS + 1):
            self.stop()
            try:
                root = self._start()
            except OSError as error:
                raise CompilerStartError(
                    f"The compiler process can't be started: {error}.", hint=_START_HINTS.get(error.errno or 0, "")
                ) from None
            try:
                self._initialize(root)
            except ProcessDiedError as death:
                self.stop()
                if not death.killed or attempt == MAX_START_ATTEMPTS:
                    raise CompilerStartError(f"The compiler process does not start: {death}.") from None
            except BaseException:  # interrupted: it would take the next document for its settings
                self.stop()
                raise
            else:
                break
        return True

    def _start(self) -> str:
        """Starts the process and returns the new directory that is all it can read.

        Raises:
            OSError: when the system has no file handles, processes or disk space left. Nothing is left behind then.
        """
        with contextlib.ExitStack() as resources:
            root = resources.enter_context(_temporary_directory())
            parent_socket, child_socket = socket.socketpair()
            resources.enter_context(parent_socket)
            with child_socket:
                process = subprocess.Popen(
                    [sys.executable, "-m", "typst_lit.typesetting.worker", str(child_socket.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[child_socket.fileno()],
                    cwd="/",  # Python imports from the working directory, which must not be the one with the assets
                    env=_minimal_environment(),
                    start_new_session=True,
                )
            resources.callback(_kill, process)
            assert process.stderr is not None
            os.set_blocking(process.stderr.fileno(), False)
            self._finalizer = weakref.finalize(self, resources.pop_all().close)
        self._process, self._channel = process, Channel(parent_socket)
        self._num_compiled = 0
        return root

    def _initialize(self, root: str) -> None:
        """Sends the settings and waits until the process has imported what it needs.

        Raises:
            ProcessDiedError: when it ended, or did not answer.
        """
        assert self._channel is not None
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        try:
            self._channel.send(json.dumps({"root": root, "settings": asdict(self._settings)}).encode(), deadline)
            self.isolation = json.loads(self._channel.receive(deadline))
        except TimeoutError:
            raise ProcessDiedError(f"it did not answer within {STARTUP_TIMEOUT_S:g} s") from None
        except (EOFError, OSError):
            raise self._death() from None

    def compile(self, source: bytes, ppi: float | None, deadline: float) -> CompileResult:
        """Sends a document and waits for the result. The process must be running.

        Args:
            source: Typst source in UTF-8.
            ppi: resolution of the page images, or None for none.
            deadline: latest time of the answer, as `time.monotonic` measures it.

        Raises:
            TimeoutError: when there was no answer by the deadline. The process was killed.
            ProcessDiedError: when the process ended without an answer.
        """
        assert self._channel is not None
        self._num_compiled += 1
        try:
            result, needs_restart = self._exchange(self._channel, source, ppi, deadline)
        except TimeoutError:
            self.stop()
            raise
        except (EOFError, OSError):
            death = self._death()
            self.stop()
            raise death from None
        except BaseException:  # interrupted: the next document would get the answer that is still to come
            self.stop()
            raise
        self._read_stderr()  # so that the pipe does not fill up
        if needs_restart:
            self.stop()
        return result

    @staticmethod
    def _exchange(channel: Channel, source: bytes, ppi: float | None, deadline: float) -> tuple[CompileResult, bool]:
        """Sends a document, receives its result and whether the process should be restarted."""
        cpu_s = max(1.0, deadline - time.monotonic())
        channel.send(json.dumps({"ppi": ppi, "cpu_s": cpu_s}).encode(), deadline)
        channel.send(source, deadline)
        answer = json.loads(channel.receive(deadline))
        pdf = channel.receive(deadline)
        pages = tuple(channel.receive(deadline) for _ in range(answer["num_images"]))
        result = CompileResult(
            ok=answer["ok"],
            pdf=pdf,
            pages=pages,
            diagnostics=tuple(Diagnostic(*values) for values in answer["diagnostics"]),
            page_texts=tuple(PageText(*values) for values in answer["page_texts"]),
            missing_assets=tuple(answer["missing_assets"]),
            source=answer["source"] or "",
        )
        return result, answer["needs_restart"]

    def stop(self) -> None:
        """Kills the process and deletes its directory."""
        if self._process is not None:
            self._finalizer()
            self._process = self._channel = None

    def _death(self) -> ProcessDiedError:
        reason = self._cause_of_death()
        assert self._process is not None
        return ProcessDiedError(reason, killed=self._process.poll() == -signal.SIGKILL)

    def _cause_of_death(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.poll()
        stderr = self._read_stderr()
        signal_name = signal.Signals(-status).name if status is not None and status < 0 else ""
        if "memory allocation of" in stderr or "MemoryError" in stderr:
            return "it needs more memory than allowed (the limit is `typesetting.memory_mib`)"
        if "overflowed its stack" in stderr or signal_name == "SIGSEGV":
            return "it is nested too deeply"
        if signal_name == "SIGXCPU":
            return "it used up its CPU time"
        if signal_name == "SIGKILL":
            return "its process was killed, as the system does when memory runs out"
        ended = f"its process died of {signal_name}" if signal_name else f"its process ended with status {status}"
        if not stderr:
            return ended
        relevant = stderr.splitlines()[-1 if stderr.startswith("Traceback") else 0]
        return f"{ended}: {relevant[:300]}"

    def _read_stderr(self) -> str:
        assert self._process is not None and self._process.stderr is not None
        return (self._process.stderr.read() or b"").decode("utf-8", "replace").strip()


@contextlib.contextmanager
def _temporary_directory() -> Iterator[str]:
    try:
        directory = tempfile.TemporaryDirectory(prefix="typst-lit-", ignore_cleanup_errors=True)
    except OSError as error:
        if error.errno not in _START_HINTS:
            raise CompilerStartError(f"No temporary directory can be created: {error}.", hint=_NO_DIRECTORY) from None
        raise
    with directory as path:
        yield path


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(MAX_KILL_S)
    if process.stderr:
        process.stderr.close()


def _minimal_environment() -> dict[str, str]:
    """Returns the environment of a worker: where Python's packages and fonts are, and no secrets."""
    environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    # Where the system grants no network namespace, the proxy keeps the compiler from downloading packages.
    environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), UNREACHABLE_PROXY)
    return environment | {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),  # noqa: PTH100
        "RAYON_NUM_THREADS": "1",  # the pool has one process per core
    }
