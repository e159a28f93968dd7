"""``typst-lit compile``: Typst files to PDFs next to them."""

from __future__ import annotations

from pathlib import Path

from typst_lit.cli.messages import translate
from typst_lit.cli.parser import Command
from typst_lit.errors import UsageError, UserError, plural
from typst_lit.manifest import check_output, write_output
from typst_lit.typesetting.results import CompileResult, shorten
from typst_lit.typesetting.typesetter import UNKNOWN_FONT, Typesetter


@Command
def compile(paths: list[str], *, ppi: float | None = None, overwrite: bool = False, typesetting: Typesetter) -> None:
    """Compile Typst files to PDFs next to them, each in a sandboxed process.

    The PDF of a source that compiles is replaced; where it does not compile, the PDF is left as it is.

    Args:
        paths: Typst files, or directories of them.
        ppi: Also write a PNG image per page, with this many pixels per inch.
        overwrite: Replace PNG images that another program wrote.
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
            try:
                if result.ok:
                    _write(file, result, overwrite)
                    compiled += 1
                print(translate(_summary(file, result)))
            except UserError as error:
                print(f"{file}: not written: {error.problem} {translate(error.hint)}")
    print(f"{compiled} of {plural(len(files), 'document')} compiled.")
    if compiled < len(files):
        raise UserError(
            f"{len(files) - compiled} of {plural(len(files), 'document')} could not be compiled or written; the "
            "reasons are listed above."
        )


def _write(file: Path, result: CompileResult, overwrite: bool) -> None:
    """Writes the PDF and the images of a document, or nothing if one of them would replace a file of the user."""
    images = {file.with_name(f"{file.stem}-{number}.png"): page for number, page in enumerate(result.pages, 1)}
    hint = "Move it, or use `overwrite=true` to replace it."
    pdf = file.with_suffix(".pdf")
    check_output(pdf, overwrite=True)  # its source has just been compiled, so it is replaced as `typst compile` does
    for path in images:
        check_output(path, overwrite, hint=hint)
    result.save_pdf(pdf)
    for path, image in images.items():
        write_output(path, image, overwrite, hint=hint)


def _summary(file: Path, result: CompileResult) -> str:
    if not result.ok:
        pdf = file.with_suffix(".pdf")
        existing = f" ({pdf} is of an earlier version; it was not changed)" if pdf.exists() else ""
        return f"{file}: no PDF: {result.error}{existing}"
    summary = f"{file.with_suffix('.pdf')}: {plural(result.page_count, 'page')}"
    if result.missing_assets:
        summary += f", with placeholder images for {shorten(', '.join(result.missing_assets))}"
    warnings = [diagnostic for diagnostic in result.diagnostics if not diagnostic.message.startswith(UNKNOWN_FONT)]
    return "\n  ".join([summary, *map(str, warnings)])  # without missing fonts, which the typesetter logs once


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
