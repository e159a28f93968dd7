"""Files that documents refer to: assets, placeholders for missing images, and paths with backslashes."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image

from typst_lit.typesetting.typesetter import Typesetter


def test_missing_images_are_replaced_by_placeholders(typesetter) -> None:
    names = ["a.png", "images/b(2).jpg", "c/d/e.svg", "f.gif", "g.webp", "h.jpeg", "i.pdf", "ü x.png"]
    source = "\n".join(f'#image("{name}", width: 4cm)' for name in names)
    result = typesetter.compile(source)
    assert result.ok and result.missing_assets == tuple(names), result.error
    assert typesetter.compile("= No image").missing_assets == ()


# Names with characters that Python calls unprintable: macOS writes U+202F into the names of its screenshots
UNUSUAL_NAMES = [
    "Screenshot at 10.00.00\u202fAM.png",
    "no-break\u00a0space.png",
    "soft\u00adhyphen.png",
    "zero\u200bwidth.png",
    "\U0001f469\u200d\U0001f52c.png",
    "two\nlines.png",
    "escape\x1b[31m.svg",
    "..dots.png",
    "..folder/a.png",
]


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_images_with_unusual_names_are_used_or_replaced(typesetter, with_assets, name) -> None:
    source = f'#image("{name}", width: 4cm)'
    replaced, used = typesetter.compile(source), with_assets.compile(source, ppi=36)
    assert replaced.ok and replaced.missing_assets == (name,), replaced.error
    assert used.ok and used.missing_assets == (), used.error
    assert _has_red(used.pages[0])


@pytest.fixture(scope="module")
def with_assets(tmp_path_factory) -> Iterator[Typesetter]:
    folder = tmp_path_factory.mktemp("assets")
    for name in UNUSUAL_NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".svg"):
            rectangle = '<rect width="9" height="9" fill="red"/>'
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{rectangle}</svg>'
            (folder / name).write_text(svg)
        else:
            Image.new("RGB", (10, 10), "#ff0000").save(folder / name)
    with Typesetter(workers=1, assets_dir=str(folder)) as typesetter:
        yield typesetter


def _has_red(page: bytes) -> bool:
    colors = Image.open(io.BytesIO(page)).convert("RGB").getcolors(100_000)
    return bool(colors) and any(color == (255, 0, 0) for _, color in colors)


@pytest.mark.parametrize("path", ["a\0b.png", "a" * 3000 + ".png", "a/" * 3000 + "b.png", "../a.png", ".."])
def test_impossible_paths_are_an_error_of_one_document(typesetter, children, path) -> None:
    typesetter.compile("= Start")
    before = [child.pid for child in children()]
    escaped = path.replace("\0", "\\u{0}")
    result = typesetter.compile(f'#image("{escaped}")')
    assert not result.ok and "line 1, column 8" in result.error and result.missing_assets == ()
    assert len(result.error) < 2300 and [child.pid for child in children()] == before


def test_the_summary_of_missing_images_has_no_control_characters(run, tmp_path) -> None:
    (tmp_path / "a.typ").write_text('#image("escape\x1b[31m.png")')
    result = run("compile", tmp_path / "a.typ")
    assert result.status == 0 and "placeholder images for escape [31m.png" in result.out


def test_other_missing_files_are_an_error(typesetter) -> None:
    result = typesetter.compile('#bibliography("refs.bib")')
    assert not result.ok and "file not found: refs.bib" in result.error and "assets_dir" in result.error


def test_documents_read_files_in_the_assets_directory_and_none_outside(tmp_path) -> None:
    folder = tmp_path / "assets"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (10, 10), "#ff0000").save(folder / "images" / "red.png")
    (folder / "style.typ").write_text("#let title = [From the house style]")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "away").symlink_to(tmp_path)
    with Typesetter(workers=1, assets_dir=str(folder)) as typesetter:
        result = typesetter.compile(
            '#import "style.typ": title\n#title\n#image("images/red.png")#image("no.png")', ppi=72
        )
        assert result.ok and result.missing_assets == ("no.png",) and "From the house style" in result.text
        for path in ("link.txt", "away/secret.txt", "/../secret.txt", "away"):
            assert not typesetter.compile(f'#read("{path}")').ok
    assert _has_red(result.pages[0])


@pytest.mark.parametrize("literal", [r"images\b.png", r"images\\b.png"])
def test_a_backslash_in_a_path_is_reported_or_normalized(typesetter, literal) -> None:
    source = f'= A\nText #image("{literal}") and #image("other.png")'
    refused = typesetter.compile(source)
    assert "backslash" in refused.error and refused.diagnostics[0].line == 2
    with Typesetter(workers=1, normalize_paths=True) as normalizing:
        result = normalizing.compile(source)
    assert result.ok and result.missing_assets == ("images/b.png", "other.png")
    assert result.source == source.replace(literal, "images/b.png") and "images/b.png" in str(result.diagnostics[0])


def test_an_error_in_an_imported_file_names_the_file(tmp_path) -> None:
    (tmp_path / "style.typ").write_text("\n" * 6 + '#image("images\\a.png")')
    with Typesetter(workers=1, assets_dir=str(tmp_path), normalize_paths=True) as typesetter:
        result = typesetter.compile('#include "style.typ"')
    (error,) = result.diagnostics
    assert "backslash" in error.message and error.line == 7 and error.file.endswith("style.typ")


def test_paths_are_normalized_after_any_line_ending() -> None:
    source = '= A\u2028B\rC #image("images\\a.png")'
    with Typesetter(workers=1, normalize_paths=True) as typesetter:
        assert typesetter.compile(source).source == source.replace("\\", "/")


def test_assets_are_not_imported_as_modules(tmp_path) -> None:
    (tmp_path / "pypdfium2.py").write_text("raise SystemExit('run')")
    with Typesetter(workers=1, assets_dir=str(tmp_path)) as typesetter:
        assert typesetter.compile('#read("/pypdfium2.py")').ok
