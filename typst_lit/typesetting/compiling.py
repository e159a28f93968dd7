"""Compiling Typst source that a model wrote: in a child process, with an empty folder as its root and a time limit.

    python -m typst_lit.typesetting.compiling FOLDER

compiles every ``.typ`` file of a folder to a PDF beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import typst
root = sys.argv[1]
source = sys.stdin.buffer.read()
try:
    sys.stdout.buffer.write(typst.compile(source, root=root, package_path=root, package_cache_path=root))
except typst.TypstError as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True)
class CompileResult:
    """What came of a source: a PDF, or the reason why there is none."""

    ok: bool
    pdf: bytes
    reason: str


def compile_source(source: str, timeout_s: float = 10.0) -> CompileResult:
    """Compiles one document in a process with an empty root folder, a memory limit of 4 GiB and a time limit."""
    with tempfile.TemporaryDirectory() as root:
        try:
            child = subprocess.run(
                [sys.executable, "-c", CHILD, root],
                input=source.encode("utf-8"),
                capture_output=True,
                timeout=timeout_s,
                cwd=root,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return CompileResult(False, b"", f"took longer than {timeout_s:g} s")
    if child.returncode == 0:
        return CompileResult(True, child.stdout, "")
    lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
    return CompileResult(False, b"", lines[-1] if lines else f"the compiler ended with status {child.returncode}")


def compile_folder(folder: Path) -> int:
    """Compiles every ``.typ`` file of a folder, prints a line each, and returns how many became a PDF."""
    sources = sorted(folder.glob("*.typ"))
    compiled = 0
    for source in sources:
        result = compile_source(source.read_text("utf-8"))
        pdf = source.with_suffix(".pdf")
        if result.ok:
            pdf.write_bytes(result.pdf)
            compiled += 1
        else:
            pdf.unlink(missing_ok=True)
        print(pdf if result.ok else f"{source}: no PDF: {result.reason}")
    print(f"{compiled} of {len(sources)} documents compiled.")
    return compiled


if __name__ == "__main__":
    sys.exit(0 if compile_folder(Path(sys.argv[1])) else 1)
