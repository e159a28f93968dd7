"""The child process that compiles: it takes its own rights away, then answers one document after the other.

Started by `compiling.Typesetter`, never by hand. It talks over a socket that it inherits: a JSON message with its
settings, then for each document a JSON message and the source; the answer is a JSON message, the PDF and the pictures.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any

from typst_lit.typesetting.placeholders import placeholder_image
from typst_lit.typesetting.results import Diagnostic, PageText, line_start, parse_diagnostics, shorten

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MOST_ASSETS = 200  # a document that asks for more files than this gets no further ones
LARGEST_ASSET_MIB = 64
_NOT_FOUND = re.compile(r"^file not found \(searched at (.*)\)$", re.DOTALL)
_BACKSLASH = "path must not contain a backslash"
_NO_PACKAGE = re.compile(r"^(failed to download package|package not found)\b.*", re.DOTALL)


def main(descriptor: int) -> None:
    """Serves documents until the other end of the socket is closed."""
    connection = Connection(descriptor)
    settings = json.loads(connection.recv_bytes())
    os.set_blocking(2, False)  # what the compiler says as it dies is read later; a full pipe must not hold it up
    network = leave_the_network()  # before anything starts a thread, which would forbid it
    memory = limit_resources(settings["memory_mib"])
    worker = Worker(settings)
    connection.send_bytes(json.dumps({"network": network, "memory": memory}).encode())
    while True:
        try:
            job = json.loads(connection.recv_bytes())
            source = connection.recv_bytes()
        except EOFError:
            shutil.rmtree(settings["root"], ignore_errors=True)
            return
        limit_cpu(job["cpu_s"])
        answer = worker.answer(source, job["ppi"])
        head = {key: value for key, value in answer.items() if key not in ("pdf", "pages")}
        connection.send_bytes(json.dumps({**head, "pictures": len(answer["pages"])}).encode())
        for blob in (answer["pdf"], *answer["pages"]):
            connection.send_bytes(blob)


def leave_the_network() -> bool:
    """Moves the process to an empty network namespace; returns False where the system does not permit that."""
    if not sys.platform.startswith("linux"):
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 or unshare(CLONE_NEWNET) == 0


def limit_resources(memory_mib: int) -> bool:
    """Limits address space and file size, and forbids core dumps; returns whether the memory limit holds here."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower_limit(resource.RLIMIT_FSIZE, LARGEST_ASSET_MIB << 20)
    try:
        lower_limit(resource.RLIMIT_AS, memory_mib << 20)
    except (OSError, ValueError):
        return False  # macOS
    return sys.platform.startswith("linux")


def lower_limit(which: int, limit: int) -> None:
    """Sets a limit of this process for good, unless the one that it was started with is lower."""
    inherited = resource.getrlimit(which)[1]
    limit = limit if inherited == resource.RLIM_INFINITY else min(limit, inherited)
    resource.setrlimit(which, (limit, limit))


def limit_cpu(seconds: float) -> None:
    """Lets the kernel end the process after so much more CPU time: for the case that nobody is left to do it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    inherited = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = limit if inherited == resource.RLIM_INFINITY else min(limit, inherited)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, inherited))


class RefusedError(Exception):
    """Why there is no document."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__()
        self.diagnostics = list(diagnostics)


class Worker:
    """The compiler, and the folder that is all it can see.

    Args:
        settings: those of `compiling.Typesetter`, and ``root``, an empty folder.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import typst  # only now that the process has its limits

        self.settings = settings
        self.root = Path(settings["root"]).resolve()
        packages = self.root / ".packages"
        packages.mkdir()
        self.typst = typst
        self.compiler = typst.Compiler(
            root=str(self.root),
            font_paths=settings["font_paths"],
            package_path=str(packages),
            package_cache_path=str(packages),
        )

    def answer(self, source: bytes, ppi: float | None) -> dict[str, Any]:
        """Compiles a source; returns the parts of a `CompileResult`, and ``spoilt`` when the process should end."""
        job = Job(self, source)
        spoilt = False
        try:
            job.run(ppi)
        except RefusedError as failure:
            job.refuse(failure.diagnostics)
        except MemoryError:
            job.refuse([Diagnostic("error", "the document needs more memory than it may have")])
            spoilt = True
        except BaseException as error:  # a panic of the compiler is no Exception
            job.refuse([Diagnostic("error", shorten(f"the compiler failed: {error}"))])
            spoilt = True
        finally:
            job.clear()
        return {
            "ok": bool(job.pdf), "pdf": job.pdf, "pages": job.pages, "diagnostics": job.diagnostics,
            "page_texts": job.page_texts, "missing_assets": job.missing, "spoilt": spoilt,
            "source": job.source.decode("utf-8", "replace") if job.source != source else None,
        }  # fmt: skip


class Job:
    """One document on its way."""

    def __init__(self, worker: Worker, source: bytes) -> None:
        self.worker = worker
        self.source = source
        self.pdf = b""
        self.pages: list[bytes] = []
        self.page_texts: list[PageText] = []
        self.diagnostics: list[Diagnostic] = []
        self.missing: list[str] = []
        self._assets: list[str] = []

    def refuse(self, diagnostics: list[Diagnostic]) -> None:
        """Withdraws what there is of the document."""
        self.pdf, self.pages, self.page_texts = b"", [], []
        self.diagnostics += diagnostics

    def clear(self) -> None:
        """Empties the root folder for the next document."""
        for path in {self.worker.root / PurePosixPath(asset).parts[0] for asset in self._assets}:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def run(self, ppi: float | None) -> None:
        """Compiles, checks the limits, reads the text, and makes pictures when ``ppi`` is given."""
        while not self.pdf:
            try:
                pdf, warnings = self.worker.compiler.compile_with_warnings(self.source)
                assert isinstance(pdf, bytes)
                self.pdf = pdf
            except self.worker.typst.TypstError as error:
                diagnostics = parse_diagnostics(error.diagnostic)
                if not self._mend(diagnostics):
                    raise RefusedError(*map(self._in_plain_words, diagnostics)) from None
            except RuntimeError as error:
                raise RefusedError(Diagnostic("error", shorten(str(error)))) from None
        self.diagnostics += [each for warning in warnings for each in parse_diagnostics(warning.diagnostic)]
        self._check_size()
        self._read(ppi)

    def _mend(self, diagnostics: list[Diagnostic]) -> bool:
        """Provides a file that is not there, or turns a backslash of a path; returns whether to compile again."""
        for each in diagnostics:
            found = _NOT_FOUND.match(each.message)
            if found and self._provide(found[1]):
                return True
            turnable = each.message == _BACKSLASH and not each.file
            if turnable and self.worker.settings["normalize_paths"] and self._turn(each):
                return True
        return False

    def _provide(self, searched: str) -> bool:
        path = os.path.relpath(searched, self.worker.root)
        if path.startswith("..") or path in self._assets or len(self._assets) >= MOST_ASSETS:
            return False
        content = self._asset(path)
        if content is None:
            content = placeholder_image(path)
            if content is None:
                return False
            self.missing.append(path)
        target = self.worker.root / path
        self._assets.append(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except OSError:  # a name that the file system refuses
            return False
        return True

    def _asset(self, path: str) -> bytes | None:
        if not self.worker.settings["assets_dir"]:
            return None
        folder = Path(self.worker.settings["assets_dir"]).resolve()
        real = (folder / path).resolve()  # where links lead to
        if not real.is_relative_to(folder) or not real.is_file() or real.stat().st_size > LARGEST_ASSET_MIB << 20:
            return None
        return real.read_bytes()

    def _turn(self, where: Diagnostic) -> bool:
        """Writes ``/`` for the backslashes of the path at a place in the source."""
        source = self.source.decode("utf-8")
        assert where.line is not None and where.column is not None
        path = re.compile(r'"(?:[^"\\]|\\.)*"').match(source, line_start(source, where.line) + where.column - 1)
        if not path:
            return False
        turned = re.sub(r"\\\\|\\(?!\")", "/", path[0])  # escaped or, as Typst also takes it, alone
        self.source = (source[: path.start()] + turned + source[path.end() :]).encode()
        self.diagnostics.append(
            Diagnostic("warning", f"the path {path[0]} was read as {turned}", where.line, where.column)
        )
        return True

    def _in_plain_words(self, each: Diagnostic) -> Diagnostic:
        """Says what is behind an error, without the name of the folder that the document was compiled in."""
        found = _NOT_FOUND.match(each.message)
        if found:
            path = os.path.relpath(found[1], self.worker.root)
            hint = "" if path.startswith("..") else "only files of assets_dir can be read, and pictures get a stand-in"
            return each._replace(message=f"file not found: {path}", hint=each.hint or hint)
        if _NO_PACKAGE.match(each.message):
            return each._replace(message="packages can't be imported", hint="documents are compiled without network")
        return each._replace(message=each.message.replace(str(self.worker.root), ""))

    def _check_size(self) -> None:
        from typst_lit.typesetting import pdf  # only now that the process has its limits

        settings = self.worker.settings
        if len(self.pdf) > settings["max_pdf_mib"] << 20:
            raise _too_much("MiB of PDF", round(len(self.pdf) / 2**20), "max_pdf_mib", settings)
        self._document = pdf.pdfium.PdfDocument(self.pdf)
        if len(self._document) > settings["max_pages"]:
            raise _too_much("pages", len(self._document), "max_pages", settings)
        side = max(max(size) for size in pdf.page_sizes(self._document))
        if side > settings["max_page_pt"]:
            raise _too_much("points on a page's longer side", round(side), "max_page_pt", settings)

    def _read(self, ppi: float | None) -> None:
        from typst_lit.typesetting import pdf

        count = range(len(self._document))
        self.page_texts = [pdf.page_text(self._document, index) for index in count]
        if ppi:
            self.pages = [pdf.page_image(self._document, index, ppi) for index in count]


def _too_much(what: str, count: int, setting: str, settings: dict[str, Any]) -> RefusedError:
    return RefusedError(
        Diagnostic("error", f"{count} {what}, where {settings[setting]} are allowed", hint=f"the limit is {setting}")
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    main(int(sys.argv[1]))
