"""Compiling Typst source that a model wrote, in sandboxed processes with a time limit."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from typst_lit.errors import UserError
from typst_lit.typesetting.process import MORE_PROCESSES, CompilerProcess, CompilerStartError, ProcessDiedError
from typst_lit.typesetting.results import CompileResult, Diagnostic
from typst_lit.typesetting.worker import WorkerSettings

log = logging.getLogger(__name__)
MAX_KILLS_PER_DOCUMENT = 3
MAX_SETTING = 1_000_000  # of any limit: a larger value is a mistake
UNKNOWN_FONT = "unknown font family: "  # how the compiler's warning of a missing font begins


class Typesetter:
    """A pool of sandboxed processes that compile documents.

    A process has no network and no privileges where the system allows that, a limited address space and an empty
    directory, and is killed when a document takes too long. When a process dies, no other document is affected.
    Processes start with the first document and end with `close`, or when the object is garbage collected.

    Args:
        workers: number of documents compiled concurrently; by default the number of cores.
        timeout_s: maximum time per document, in seconds.
        memory_mib: maximum memory (address space) per process, in MiB.
        max_pages: maximum number of pages per document.
        max_page_pt: maximum side of a page, in points (the longer side of A0 has 3370).
        max_pdf_mib: maximum size of a PDF, in MiB.
        max_source_mib: maximum size of a source, in MiB.
        assets_dir: directory with the files that documents refer to; missing images are replaced by a gray placeholder.
        font_paths: directory with additional fonts, or a list of directories.
        normalize_paths: whether to read backslashes in paths as slashes. Typst rejects backslashes.

    Raises:
        UserError: when a setting is out of range or a directory does not exist.

    >>> with Typesetter(workers=1) as typesetter:
    ...     result = typesetter.compile("= Title\\nSome *text*.")
    ...     broken = typesetter.compile("= Title\\n#text(")
    >>> result.ok, result.body
    (True, 'Title\\nSome text.')
    >>> broken.ok, broken.error
    (False, 'error: line 2, column 6: unclosed delimiter')
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
        _check_range("workers", 1 if workers is None else workers, 1)
        _check_range("timeout_s", timeout_s, 0.1)
        _check_range("memory_mib", memory_mib, 512)
        _check_range("max_pages", max_pages, 1)
        _check_range("max_page_pt", max_page_pt, 1)
        _check_range("max_pdf_mib", max_pdf_mib, 1)
        _check_range("max_source_mib", max_source_mib, 1)
        self.workers = workers or _num_cores()
        self.timeout_s = timeout_s
        self.max_source_mib = max_source_mib
        font_paths = [font_paths] if isinstance(font_paths, str) else font_paths
        self.font_paths = [_resolve_directory("font_paths", path) for path in font_paths]
        settings = WorkerSettings(
            memory_mib=memory_mib,
            max_pages=max_pages,
            max_page_pt=max_page_pt,
            max_pdf_mib=max_pdf_mib,
            assets_dir=_resolve_directory("assets_dir", assets_dir) if assets_dir else None,
            font_paths=self.font_paths,
            normalize_paths=normalize_paths,
        )
        self._idle: queue.LifoQueue[CompilerProcess] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(CompilerProcess(settings))
        self._threads: ThreadPoolExecutor | None = None
        self._reported_fonts: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Typesetter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the processes. The next document starts new ones."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        processes = [self._idle.get() for _ in range(self.workers)]
        for process in processes:
            process.stop()
            self._idle.put(process)

    def isolation(self) -> dict[str, bool]:
        """Starts a process and returns which parts of its isolation the system enforces.

        ``network``: it has no network; ``memory``: its address space is limited.

        Raises:
            CompilerStartError: when no process starts.
        """
        process = self._idle.get()
        try:
            process.ensure_running()
            return process.isolation
        finally:
            self._idle.put(process)

    def compile(self, source: str | bytes, ppi: float | None = None) -> CompileResult:
        """Compiles one document. This method is thread-safe.

        Args:
            source: Typst source.
            ppi: resolution of the page images, in pixels per inch; None for no images.

        Raises:
            CompilerStartError: when no process starts, because the system has no file handles, processes or disk space
                left. The next call tries again.
        """
        started = time.monotonic()
        try:
            encoded = source if isinstance(source, bytes) else source.encode()
            text = encoded.decode()
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            result = _failure(f"the source is not valid Unicode text ({error.reason} at {error.start})")
        else:
            size_mib = len(encoded) / 2**20
            if size_mib > self.max_source_mib:
                problem = f"the source has {size_mib:.1f} MiB, but the maximum is {self.max_source_mib} MiB"
                result = _failure(problem, "the limit is `typesetting.max_source_mib`")
            else:
                result = self._compile_in_process(encoded, ppi)
            result = replace(result, source=result.source or text)
        self._warn_of_missing_fonts(result)
        return replace(result, seconds=time.monotonic() - started)

    def compile_many(self, sources: Iterable[str | bytes], ppi: float | None = None) -> Iterator[CompileResult]:
        """Compiles documents concurrently and yields the results in order.

        The sources are consumed lazily, about two per process ahead of the results.

        Args:
            sources: Typst sources.
            ppi: resolution of the page images, in pixels per inch; None for no images.

        Raises:
            CompilerStartError: when no process starts. The next call tries again.

        >>> with Typesetter(workers=1) as typesetter:
        ...     [result.text for result in typesetter.compile_many(["First", "Second"])]
        ['First', 'Second']
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers, "typesetting")
        threads = self._threads
        pending: deque[Future[CompileResult]] = deque()
        remaining = iter(sources)
        try:
            while True:
                for source in itertools.islice(remaining, 2 * self.workers - len(pending)):
                    pending.append(_submit(threads, self.compile, source, ppi))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _compile_in_process(self, source: bytes, ppi: float | None) -> CompileResult:
        process = self._idle.get()
        deadline = time.monotonic() + self.timeout_s
        num_kills = 0
        try:
            while True:
                before = time.monotonic()
                is_new = process.ensure_running()
                deadline += time.monotonic() - before  # starting a process does not count
                try:
                    result = process.compile(source, ppi, deadline)
                except TimeoutError:
                    problem = f"the document took longer than {self.timeout_s:g} s"
                    return _failure(problem, "the limit is `typesetting.timeout_s`")
                except ProcessDiedError as death:
                    result = _failure(f"the compiler failed on the document: {death}")
                    num_kills += death.killed
                    if death.killed and num_kills < MAX_KILLS_PER_DOCUMENT:
                        is_new = False  # the memory that the system reclaimed may have been used by something else
                # Earlier documents may have left the process in a bad state: only the result of a new one counts.
                if process.running or is_new or time.monotonic() >= deadline:
                    return result
        finally:
            self._idle.put(process)

    def _warn_of_missing_fonts(self, result: CompileResult) -> None:
        """Logs each font that is not installed once per typesetter."""
        families = {
            diagnostic.message.removeprefix(UNKNOWN_FONT)
            for diagnostic in result.diagnostics
            if diagnostic.message.startswith(UNKNOWN_FONT)
        }
        with self._lock:
            new = sorted(families - self._reported_fonts)
            self._reported_fonts |= families
        if new:
            log.warning(
                "Missing fonts: %s. Other fonts are used instead. Install them, or name a directory that has "
                "them with `typesetting.font_paths`.",
                ", ".join(new),
            )


def _submit(
    threads: ThreadPoolExecutor, compile: Callable[..., CompileResult], source: str | bytes, ppi: float | None
) -> Future[CompileResult]:
    try:
        return threads.submit(compile, source, ppi)
    except RuntimeError as error:
        raise CompilerStartError(f"No thread can be started: {error}.", hint=MORE_PROCESSES) from None


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def _check_range(name: str, value: float, minimum: float) -> None:
    if not minimum <= value <= MAX_SETTING:
        raise UserError(f"must be between {minimum} and {MAX_SETTING}, not {value}.", setting=f"typesetting.{name}")


def _resolve_directory(name: str, path: str) -> str:
    if not Path(path).is_dir():
        raise UserError(f"the directory {path} does not exist.", setting=f"typesetting.{name}")
    return str(Path(path).resolve())


def _failure(message: str, hint: str = "") -> CompileResult:
    return CompileResult(False, diagnostics=(Diagnostic("error", message, hint=hint),))
