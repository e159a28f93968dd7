"""``typst-lit compile``: Typst files to PDFs next to them."""

from __future__ import annotations

from pathlib import Path

from typst_lit.cli.parser import Command
from typst_lit.errors import UsageError, UserError
from typst_lit.typesetting.results import CompileResult, shorten
from typst_lit.typesetting.typesetter import Typesetter


@Command
def compile(paths: list[str], *, ppi: float | None = None, typesetting: Typesetter) -> None:
    """Compile Typst files to PDFs next to them, each in a sandboxed process.

    Args:
        paths: Typst files, or directories of them.
        ppi: Also write a PNG image per page, with this many pixels per inch.
        typesetting: The limits of each document.
    """
    if not paths:
        raise UsageError("no files are given.", hint="Name Typst files, or directories of them.")
    if ppi is not None and ppi <= 0:
        raise UserError(f"must be above 0, not {ppi}.", setting="ppi")
    files = [file for path in paths for file in _typst_files(Path(path))]
    compiled = 0
    with typesetting:
        sources = (file.read_bytes() for file in files)
        for file, result in zip(files, typesetting.compile_many(sources, ppi), strict=True):
            result.save_pdf(file.with_suffix(".pdf"))
            for number, page in enumerate(result.pages, 1):
                file.with_name(f"{file.stem}-{number}.png").write_bytes(page)
            compiled += result.ok
            print(_summary(file, result))
    print(f"{compiled} of {len(files)} document{'s' * (len(files) != 1)} compiled.")
    if compiled < len(files):
        raise UserError(f"{len(files) - compiled} of {len(files)} documents have no PDF; the reasons are listed above.")


def _summary(file: Path, result: CompileResult) -> str:
    if not result.ok:
        return f"{file}: no PDF: {result.error}"
    summary = f"{file.with_suffix('.pdf')}: {result.page_count} page{'s' * (result.page_count != 1)}"
    if result.missing_assets:
        summary += f", with placeholder images for {shorten(', '.join(result.missing_assets))}"
    return summary


def _typst_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix != ".typ":  # its PDF might overwrite an unrelated file
            raise UserError(f"{path}: is not a .typ file.")
        return [path]
    files = sorted(path.glob("*.typ"))
    if not files:
        problem = "contains no .typ files" if path.is_dir() else "does not exist"
        raise UserError(f"{path}: {problem}.", hint="Name Typst files, or directories of them.")
    return files
