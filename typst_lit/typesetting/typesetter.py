"""Compiling Typst source that a model wrote: in child processes that can do no harm, and are killed in time."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from typst_lit.errors import UserError
from typst_lit.typesetting.results import CompileResult, Diagnostic, PageText

log = logging.getLogger(__name__)
COMPILES_A_WORKER = 1000  # then a fresh one takes its place: the compiler's cache and its counters only ever grow
KILLS = 3  # of a document's processes from outside, and it is given up
START_UP_S = 60.0  # a worker that has not come up by then never will
LARGEST_MESSAGE = 1 << 31
MOST_OF_ANY = 1_000_000  # no limit is of use above this
_UNKNOWN_FONT = "unknown font family: "


class Typesetter:
    """A pool of processes that compile documents.

    Each process gives up network and privileges where the system allows it, may use so much memory, sees an empty
    folder, and is killed when a document takes too long. A process that dies takes no other document with it.
    Processes start with the first document and end with `close`, or when the object is no longer used.

    Args:
        workers: how many documents are compiled at a time; by default as many as there are cores.
        timeout_s: longest time a document may take, in seconds.
        memory_mib: most memory (address space) a process may have.
        max_pages: most pages of a document.
        max_page_pt: longest side of a page, in points (A0 has 3370).
        max_pdf_mib: largest PDF.
        max_source_mib: largest source.
        assets_dir: folder of the files that documents name; pictures that are not there get a grey stand-in.
        font_paths: folder of further fonts, or a list of such.
        normalize_paths: read a backslash in a path as a slash. Typst refuses it.
    """

    def __init__(
        self,
        workers: int | None = None,
        timeout_s: float = 10.0,
        memory_mib: int = 2048,
        max_pages: int = 500,
        max_page_pt: float = 5000.0,
        max_pdf_mib: int = 64,
        max_source_mib: int = 4,
        assets_dir: str | None = None,
        font_paths: str | Sequence[str] = (),
        normalize_paths: bool = False,
    ) -> None:
        font_paths = [font_paths] if isinstance(font_paths, str) else font_paths
        for name, value, least in (
            ("workers", 1 if workers is None else workers, 1), ("timeout_s", timeout_s, 0.1),
            ("memory_mib", memory_mib, 512), ("max_pages", max_pages, 1), ("max_page_pt", max_page_pt, 1),
            ("max_pdf_mib", max_pdf_mib, 1), ("max_source_mib", max_source_mib, 1),
        ):  # fmt: skip
            if not least <= value <= MOST_OF_ANY:
                raise UserError(f"typesetting.{name} must be {least} to {MOST_OF_ANY}, not {value}.")
        for name, folder in [("assets_dir", assets_dir)] * bool(assets_dir) + [("font_paths", f) for f in font_paths]:
            if not Path(str(folder)).is_dir():
                raise UserError(f"typesetting.{name}: there is no folder {folder}.")
        self.workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0, 0])
        self.timeout_s = timeout_s
        self.max_source_mib = max_source_mib
        self.font_paths = [str(Path(path).resolve()) for path in font_paths]
        self._settings = {
            "memory_mib": memory_mib, "max_pages": max_pages, "max_page_pt": max_page_pt, "max_pdf_mib": max_pdf_mib,
            "assets_dir": str(Path(assets_dir).resolve()) if assets_dir else None,
            "font_paths": self.font_paths, "normalize_paths": normalize_paths,
        }  # fmt: skip
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(_Worker(self._settings))
        self._threads: ThreadPoolExecutor | None = None
        self._known_fallbacks: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Typesetter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes. The next document starts new ones."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        workers = [self._idle.get() for _ in range(self.workers)]
        for worker in workers:
            worker.stop()
            self._idle.put(worker)

    def containment(self) -> dict[str, bool]:
        """Returns which of the limits the system grants: ``network`` (cut off) and ``memory``."""
        worker = self._idle.get()
        try:
            worker.start()
            return worker.granted
        finally:
            self._idle.put(worker)

    def compile(self, source: str | bytes, ppi: float | None = None) -> CompileResult:
        """Compiles one document. May be called from several threads.

        Args:
            source: Typst source.
            ppi: dots an inch of the pages' pictures; None makes none.
        """
        started = time.monotonic()
        try:
            encoded = source if isinstance(source, bytes) else source.encode()
            text = encoded.decode()
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            result = _refused(f"the source is not valid Unicode text ({error.reason} at {error.start})")
        else:
            if len(encoded) > self.max_source_mib << 20:
                what = f"the source has {len(encoded) / 2**20:.1f} MiB, where {self.max_source_mib} are allowed"
                result = _refused(what, "the limit is max_source_mib")
            else:
                result = self._compile(encoded, ppi)
            result = _with(result, source=result.source or text)
        self._tell_of_fonts(result)
        return _with(result, seconds=time.monotonic() - started)

    def compile_many(self, sources: Iterable[str | bytes], ppi: float | None = None) -> Iterator[CompileResult]:
        """Compiles documents side by side and yields their results in order, reading only a little ahead."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers, "typesetting")
        threads = self._threads
        waiting: deque[Future[CompileResult]] = deque()
        rest = iter(sources)
        try:
            while True:
                for source in itertools.islice(rest, 2 * self.workers - len(waiting)):
                    waiting.append(threads.submit(self.compile, source, ppi))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _compile(self, source: bytes, ppi: float | None) -> CompileResult:
        worker = self._idle.get()
        deadline = time.monotonic() + self.timeout_s
        kills = 0
        try:
            while True:
                before = time.monotonic()
                fresh = worker.start()
                deadline += time.monotonic() - before  # starting is not the document's fault
                try:
                    result = worker.ask(source, ppi, deadline)
                except TimeoutError:
                    return _refused(f"the document took longer than {self.timeout_s:g} s", "the limit is timeout_s")
                except _WorkerDiedError as death:
                    result = _refused(f"the document broke the compiler: {death}")
                    kills += death.killed
                    if death.killed and kills < KILLS:
                        fresh = False  # others may have taken the memory that the system wanted back
                # What other documents left behind may have broken it: only a fresh process gives a verdict.
                if worker.runs or fresh or time.monotonic() >= deadline:
                    return result
        finally:
            self._idle.put(worker)

    def _tell_of_fonts(self, result: CompileResult) -> None:
        families = {
            each.message.removeprefix(_UNKNOWN_FONT)
            for each in result.diagnostics
            if each.message.startswith(_UNKNOWN_FONT)
        }
        with self._lock:
            new = sorted(families - self._known_fallbacks)
            self._known_fallbacks |= families
        if new:
            log.warning(
                "Fonts that are not on this machine: %s. Documents that ask for them are set in another font. "
                "Install them, or name a folder that has them with --typesetting.font_paths.", ", ".join(new),
            )  # fmt: skip


class _WorkerDiedError(Exception):
    """A worker ended before it answered.

    Args:
        reason: why, as far as it is known.
        killed: whether it was killed from outside.
    """

    def __init__(self, reason: str, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


class _Worker:
    """A child process, started when it is needed and replaced when it was killed or has done its share."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._root: tempfile.TemporaryDirectory[str] | None = None
        self._compiled = 0
        self.granted: dict[str, bool] = {}

    @property
    def runs(self) -> bool:
        """Whether the process is there: it is ended when a document broke it."""
        return self._process is not None

    def start(self) -> bool:
        """Makes sure that the process runs; returns whether it is a fresh one.

        Raises:
            UserError: when it does not start.
        """
        if self._process is not None and self._process.poll() is None and self._compiled < COMPILES_A_WORKER:
            return self._compiled == 0
        for left in reversed(range(KILLS)):
            try:
                self._start()
            except _WorkerDiedError as death:
                self.stop()
                if not (death.killed and left):
                    raise UserError(f"the typesetting process does not start: {death}") from None
            else:
                break
        return True

    def _start(self) -> None:
        self.stop()
        self._root = tempfile.TemporaryDirectory(prefix="typst-lit-", ignore_cleanup_errors=True)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "typst_lit.typesetting.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                cwd="/",  # Python imports from the working directory, which must not be the one that assets come to
                env=_bare_environment(),
                start_new_session=True,
            )
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._connection = Connection(ours.detach())
        self._compiled = 0
        self._finalizer = weakref.finalize(self, _end, self._process, self._connection, self._root)
        try:
            self._connection.send_bytes(json.dumps({**self._settings, "root": self._root.name}).encode())
            if not self._connection.poll(START_UP_S):
                raise _WorkerDiedError(f"it did not start within {START_UP_S:g} s")
            self.granted = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._death() from None

    def ask(self, source: bytes, ppi: float | None, deadline: float) -> CompileResult:
        """Hands a document over and waits for the answer.

        Raises:
            TimeoutError: when it has not come by the deadline. The process was killed.
            _WorkerDiedError: when the process ended instead.
        """
        assert self._connection is not None
        left = deadline - time.monotonic()
        self._compiled += 1
        try:
            self._connection.send_bytes(json.dumps({"ppi": ppi, "cpu_s": max(1.0, left)}).encode())
            self._connection.send_bytes(source)
            if not self._connection.poll(max(0.0, left)):
                self.stop()
                raise TimeoutError
            head = json.loads(self._connection.recv_bytes(LARGEST_MESSAGE))
            pdf = self._connection.recv_bytes(LARGEST_MESSAGE)
            pages = tuple(self._connection.recv_bytes(LARGEST_MESSAGE) for _ in range(head["pictures"]))
        except TimeoutError:
            raise
        except (EOFError, OSError):
            death = self._death()
            self.stop()
            raise death from None
        except BaseException:  # interrupted: the answer is still to come, and would be taken for the next document's
            self.stop()
            raise
        self._last_words()  # or the pipe fills up
        if head["spoilt"]:
            self.stop()
        return CompileResult(
            ok=head["ok"],
            pdf=pdf,
            pages=pages,
            diagnostics=tuple(Diagnostic(*each) for each in head["diagnostics"]),
            page_texts=tuple(PageText(*each) for each in head["page_texts"]),
            missing_assets=tuple(head["missing_assets"]),
            source=head["source"] or "",
        )

    def stop(self) -> None:
        """Kills the process and removes its folder."""
        if self._process is not None:
            self._finalizer()
            self._process = self._connection = self._root = None

    def _death(self) -> _WorkerDiedError:
        reason = self._cause_of_death()
        assert self._process is not None
        return _WorkerDiedError(reason, self._process.poll() == -signal.SIGKILL)

    def _cause_of_death(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.poll()
        words = self._last_words()
        name = signal.Signals(-status).name if status is not None and status < 0 else ""
        if "memory allocation of" in words or "MemoryError" in words:
            return "it needs more memory than it may have (the limit is memory_mib)"
        if "overflowed its stack" in words or name == "SIGSEGV":
            return "it is nested too deeply"
        if name == "SIGXCPU":
            return "it used up its CPU time"
        if name == "SIGKILL":
            return "the system killed its process, which it does when memory runs out"
        ended = f"the process died of {name}" if name else f"the process ended with status {status}"
        if not words:
            return ended
        telling = words.splitlines()[-1 if words.startswith("Traceback") else 0]
        return f"{ended}: {telling[:300]}"

    def _last_words(self) -> str:
        assert self._process is not None and self._process.stderr is not None
        return (self._process.stderr.read() or b"").decode("utf-8", "replace").strip()


def _end(process: subprocess.Popen[bytes], connection: Connection, root: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.wait()
    connection.close()
    if process.stderr:
        process.stderr.close()
    root.cleanup()


def _bare_environment() -> dict[str, str]:
    """Returns what a worker needs to know of the environment: where Python's packages are, and nothing private."""
    kept = ("PATH", "LD_LIBRARY_PATH", "LANG", "FONTCONFIG_FILE", "FONTCONFIG_PATH", "XDG_DATA_DIRS", "TZ")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    nowhere = "http://127.0.0.1:9"  # the discard port: where no namespace can be had, packages are not fetched either
    return environment | {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),  # noqa: PTH100
        "RAYON_NUM_THREADS": "1",  # the pool has a process a core
        "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "ALL_PROXY": nowhere,
    }  # fmt: skip


def _refused(message: str, hint: str = "") -> CompileResult:
    return CompileResult(False, diagnostics=(Diagnostic("error", message, hint=hint),))


def _with(result: CompileResult, **changes: Any) -> CompileResult:
    return CompileResult(**{**vars(result), **changes})


def compile_source(source: str | bytes, ppi: float | None = None, **settings: Any) -> CompileResult:
    """Compiles one document with a `Typesetter` of its own, made of ``settings``. For several, keep one and use it."""
    with Typesetter(workers=1, **settings) as typesetter:
        return typesetter.compile(source, ppi)


def compile_many(sources: Iterable[str | bytes], ppi: float | None = None, **settings: Any) -> Iterator[CompileResult]:
    """Compiles documents with a `Typesetter` of their own and yields the results in order."""
    with Typesetter(**settings) as typesetter:
        yield from typesetter.compile_many(sources, ppi)
