"""The child process that compiles: it gives up its privileges, then compiles one document after another.

Started by `process.CompilerProcess`. It communicates over an inherited socket. It receives its root directory and its
settings as JSON, then for each document a JSON message and the source; it answers with a JSON message, the PDF and the
page images.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from typst_lit.typesetting.channel import Channel
from typst_lit.typesetting.placeholders import placeholder_image
from typst_lit.typesetting.results import Diagnostic, PageText, line_start, parse_diagnostics

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MAX_ASSETS_PER_DOCUMENT = 200
MAX_FILE_MIB = 64  # of an asset that is read, and of any file that is written
NO_RESOURCES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS)
_NOT_FOUND = re.compile(r"^file not found \(searched at (.*)\)$", re.DOTALL)
_BACKSLASH = "path must not contain a backslash"
_NO_PACKAGE = re.compile(r"^(failed to download package|package not found)\b.*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of `Typesetter` that a worker needs."""

    memory_mib: int = 2048
    max_pages: int = 500
    max_page_pt: float = 5000.0
    max_pdf_mib: int = 64
    assets_dir: str | None = None
    font_paths: Sequence[str] = ()
    normalize_paths: bool = False


def main(descriptor: int) -> None:
    """Compiles documents until the other end of the socket is closed."""
    channel = Channel(socket.socket(fileno=descriptor))
    start = json.loads(channel.receive())
    root, settings = Path(start["root"]), WorkerSettings(**start["settings"])
    os.set_blocking(2, False)  # a full stderr pipe must not block the compiler
    network = drop_network()  # before any thread starts, because threads make it impossible
    memory = limit_resources(settings.memory_mib)
    worker = Worker(root, settings)
    with contextlib.suppress(EOFError, ConnectionError):
        channel.send(json.dumps({"network": network, "memory": memory}).encode())
        while True:
            request = json.loads(channel.receive())
            source = channel.receive()
            limit_cpu_time(request["cpu_s"])
            answer = worker.compile(source, request["ppi"])
            pdf, images = answer.pop("pdf"), answer.pop("pages")
            channel.send(json.dumps({**answer, "num_images": len(images)}).encode())
            for blob in (pdf, *images):
                channel.send(blob)
    shutil.rmtree(root, ignore_errors=True)  # the parent was killed, or it would have done this


def drop_network() -> bool:
    """Moves the process to an empty network namespace; returns False where the system does not permit that."""
    if not sys.platform.startswith("linux"):
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 or unshare(CLONE_NEWNET) == 0


def limit_resources(memory_mib: int) -> bool:
    """Limits address space and file size and disables core dumps; returns whether the memory limit is enforced."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower_limit(resource.RLIMIT_FSIZE, MAX_FILE_MIB << 20)
    try:
        lower_limit(resource.RLIMIT_AS, memory_mib << 20)
    except (OSError, ValueError):
        return False  # macOS
    return sys.platform.startswith("linux")


def lower_limit(resource_id: int, limit: int) -> None:
    """Sets the soft and hard limit of a resource, unless the inherited hard limit is lower."""
    inherited = resource.getrlimit(resource_id)[1]
    limit = limit if inherited == resource.RLIM_INFINITY else min(limit, inherited)
    resource.setrlimit(resource_id, (limit, limit))


def limit_cpu_time(seconds: float) -> None:
    """Lets the kernel kill the process after this much more CPU time, in case the parent no longer can."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    inherited = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = limit if inherited == resource.RLIM_INFINITY else min(limit, inherited)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, inherited))


class DocumentError(Exception):
    """A document that can't be compiled, or exceeds a limit."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__()
        self.diagnostics = list(diagnostics)


class Worker:
    """The compiler and the directory that is all it can read.

    Args:
        root: an empty directory, the only one that documents can read.
        settings: limits, and what is copied to the root on demand.
    """

    def __init__(self, root: Path, settings: WorkerSettings) -> None:
        import typst  # after the process has limited its resources

        self.settings = settings
        self.root = root.resolve()
        packages = self.root / ".packages"
        packages.mkdir()
        self.typst = typst
        self.compiler = typst.Compiler(
            root=str(self.root),
            font_paths=list(settings.font_paths),
            package_path=str(packages),
            package_cache_path=str(packages),
        )

    def compile(self, source: bytes, ppi: float | None) -> dict[str, Any]:
        """Returns the attributes of a `CompileResult`, and ``needs_restart``: whether the process should end."""
        task = CompileTask(self, source)
        needs_restart = False
        try:
            task.run(ppi)
        except DocumentError as error:
            task.fail(error.diagnostics)
        except MemoryError:
            task.fail([Diagnostic("error", "the document needs more memory than allowed")])
            needs_restart = True
        except BaseException as error:  # a panic of the compiler is not an Exception
            task.fail([Diagnostic("error", f"the compiler failed: {error}")])
            needs_restart = True
        finally:
            task.remove_assets()
        return {
            "ok": bool(task.pdf),
            "pdf": task.pdf,
            "pages": task.pages,
            "diagnostics": [diagnostic.shortened() for diagnostic in task.diagnostics],
            "page_texts": task.page_texts,
            "missing_assets": task.missing_assets,
            "needs_restart": needs_restart,
            "source": task.source.decode("utf-8", "replace") if task.source != source else None,
        }


class CompileTask:
    """The compilation of one document.

    The compiler names one missing file per run, so the task adds that file (the asset, or a placeholder image) to the
    root directory and compiles again, until the document compiles or fails for another reason.
    """

    def __init__(self, worker: Worker, source: bytes) -> None:
        self.worker = worker
        self.source = source
        self.pdf = b""
        self.pages: list[bytes] = []
        self.page_texts: list[PageText] = []
        self.diagnostics: list[Diagnostic] = []
        self.missing_assets: list[str] = []
        self._assets: list[str] = []

    def run(self, ppi: float | None) -> None:
        """Compiles, checks the limits, and reads the text; renders page images when ``ppi`` is given.

        Raises:
            DocumentError: when the document does not compile or exceeds a limit.
        """
        while not self.pdf:
            try:
                pdf, warnings = self.worker.compiler.compile_with_warnings(self.source)
                assert isinstance(pdf, bytes)
                self.pdf = pdf
            except self.worker.typst.TypstError as error:
                diagnostics = parse_diagnostics(error.diagnostic)
                if not self._fix(diagnostics):
                    raise DocumentError(*map(self._clarify, diagnostics)) from None
            except RuntimeError as error:
                raise DocumentError(Diagnostic("error", str(error))) from None
        for warning in warnings:
            self.diagnostics += parse_diagnostics(warning.diagnostic)
        self._read_pdf(ppi)

    def fail(self, diagnostics: list[Diagnostic]) -> None:
        """Discards the pages and adds the errors."""
        self.pdf, self.pages, self.page_texts = b"", [], []
        self.diagnostics += diagnostics

    def remove_assets(self) -> None:
        """Empties the root directory for the next document."""
        for path in {self.worker.root / PurePosixPath(asset).parts[0] for asset in self._assets}:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _fix(self, diagnostics: list[Diagnostic]) -> bool:
        """Adds a missing file or normalizes a path; returns whether to compile again."""
        for diagnostic in diagnostics:
            missing = _NOT_FOUND.match(diagnostic.message)
            if missing and self._add_file(missing[1]):
                return True
            is_backslash = diagnostic.message == _BACKSLASH and not diagnostic.file
            if is_backslash and self.worker.settings.normalize_paths and self._normalize_path(diagnostic):
                return True
        return False

    def _add_file(self, searched: str) -> bool:
        """Writes the file that the compiler searched for; returns False when there is none to write."""
        path = os.path.relpath(searched, self.worker.root)
        if _is_outside(path) or path in self._assets or len(self._assets) >= MAX_ASSETS_PER_DOCUMENT:
            return False
        content = self._read_asset(path)
        is_missing = content is None
        if content is None and (content := placeholder_image(path)) is None:
            return False
        target = self.worker.root / path
        self._assets.append(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in NO_RESOURCES:
                raise DocumentError(Diagnostic("error", f"{path} can't be copied: {error.strerror}")) from None
            return False  # a name that the file system refuses
        if is_missing:
            self.missing_assets.append(path)
        return True

    def _read_asset(self, path: str) -> bytes | None:
        if not self.worker.settings.assets_dir:
            return None
        directory = Path(self.worker.settings.assets_dir).resolve()
        try:
            real = (directory / path).resolve()  # follows symbolic links, which may lead outside
            if not real.is_relative_to(directory) or not real.is_file() or real.stat().st_size > MAX_FILE_MIB << 20:
                return None
            return real.read_bytes()
        except (OSError, ValueError):  # a name that the file system refuses, or a file without permission
            return None

    def _normalize_path(self, error: Diagnostic) -> bool:
        """Replaces the backslashes of the path at an error by slashes; returns whether there was one."""
        source = self.source.decode("utf-8")
        assert error.line is not None and error.column is not None
        path = _STRING.match(source, line_start(source, error.line) + error.column - 1)
        if not path:
            return False
        normalized = re.sub(r"\\\\|\\(?!\")", "/", path[0])  # escaped or single: Typst accepts both in a string
        self.source = (source[: path.start()] + normalized + source[path.end() :]).encode()
        message = f"the path {path[0]} was read as {normalized}"
        self.diagnostics.append(Diagnostic("warning", message, error.line, error.column))
        return True

    def _clarify(self, diagnostic: Diagnostic) -> Diagnostic:
        """Explains errors that the sandbox causes, and removes the name of the root directory."""
        missing = _NOT_FOUND.match(diagnostic.message)
        if missing:
            path = os.path.relpath(missing[1], self.worker.root)
            hint = "only files in `typesetting.assets_dir` can be read; missing images are replaced by a placeholder"
            hint = "" if _is_outside(path) else hint
            return diagnostic._replace(message=f"file not found: {path}", hint=diagnostic.hint or hint)
        if _NO_PACKAGE.match(diagnostic.message):
            return diagnostic._replace(
                message="packages can't be imported", hint="documents are compiled without network access"
            )
        return diagnostic._replace(message=diagnostic.message.replace(str(self.worker.root), ""))

    def _read_pdf(self, ppi: float | None) -> None:
        """Checks the limits of the PDF, then reads text and images from it."""
        from typst_lit.typesetting import pdf  # after the process has limited its resources
        from typst_lit.typesetting.active_content import active_content

        settings = self.worker.settings
        _check_limit("max_pdf_mib", len(self.pdf) / 2**20, settings.max_pdf_mib, "MiB of PDF")
        document = pdf.pdfium.PdfDocument(self.pdf)
        _check_limit("max_pages", len(document), settings.max_pages, "pages")
        longer_side = max(max(size) for size in pdf.page_sizes(document))
        _check_limit("max_page_pt", longer_side, settings.max_page_pt, "points on the longer side of a page")
        self.diagnostics += active_content(document)
        self.page_texts = [pdf.page_text(document, index) for index in range(len(document))]
        if ppi:
            self.pages = [pdf.page_image(document, index, ppi) for index in range(len(document))]


def _is_outside(path: str) -> bool:
    """Whether a path relative to the root directory leads out of it. A name such as ``..a.png`` does not."""
    return PurePosixPath(path).parts[:1] == ("..",)


def _check_limit(setting: str, value: float, limit: float, what: str) -> None:
    if value > limit:
        message = f"{value:.0f} {what}, but the maximum is {limit:.10g}"
        raise DocumentError(Diagnostic("error", message, hint=f"the limit is `typesetting.{setting}`"))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    main(int(sys.argv[1]))
