"""``typst-lit compile``: Typst files to PDFs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from typst_lit.cli.parser import CommandParser
from typst_lit.errors import UserError
from typst_lit.typesetting.typesetter import Typesetter


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit compile", description=run.__doc__)
    made.add_argument("paths", type=str, nargs="+", help="Typst files, or folders of them.")
    made.add_argument("--ppi", type=float | None, default=None, help="Dots an inch: makes PNG pictures of the pages.")
    made.add_class_arguments(Typesetter, "typesetting")
    return made


def run(args: Sequence[str]) -> None:
    """Compiles Typst files to PDFs beside them, in processes that can do no harm."""
    made = parser()
    config = made.instantiate_classes(made.parse_args(list(args)))
    if config.ppi is not None and config.ppi <= 0:
        raise UserError(f"--ppi must be above 0, not {config.ppi}.")
    files = [file for path in config.paths for file in _typst_files(Path(path))]
    compiled = 0
    with config.typesetting as typesetter:
        sources = (file.read_bytes() for file in files)
        for file, result in zip(files, typesetter.compile_many(sources, config.ppi), strict=True):
            pdf = file.with_suffix(".pdf")
            result.save_pdf(pdf)
            if result.ok:
                compiled += 1
                stand_ins = f", with stand-ins for {', '.join(result.missing_assets)}" * bool(result.missing_assets)
                print(f"{pdf}: {result.page_count} page{'s' * (result.page_count != 1)}{stand_ins}")
            else:
                print(f"{file}: no PDF: {result.error}")
            for number, page in enumerate(result.pages, 1):
                file.with_name(f"{file.stem}-{number}.png").write_bytes(page)
    print(f"{compiled} of {len(files)} documents compiled.")
    if compiled < len(files):
        raise UserError(f"{len(files) - compiled} of {len(files)} documents have no PDF; the reasons stand above.")


def _typst_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix != ".typ":  # its PDF might be a file that has nothing to do with it
            raise UserError(f"{path}: is no .typ file.")
        return [path]
    found = sorted(path.glob("*.typ"))
    if not found:
        what = "holds no .typ file" if path.is_dir() else "is not there"
        raise UserError(f"{path}: {what}. Name Typst files or folders of them.")
    return found
