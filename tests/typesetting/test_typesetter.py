from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from typst_lit.errors import UserError
from typst_lit.typesetting import typesetter as typesetter_module
from typst_lit.typesetting.typesetter import Typesetter


def test_a_result_has_pdf_text_and_images(typesetter) -> None:
    source = "#set page(header: [The header], footer: [Footer #context counter(page).display()])\n= Title\nText.\n"
    result = typesetter.compile(source + "#pagebreak()\nMore.", ppi=36)
    assert result.ok and result.pdf.startswith(b"%PDF") and result.error == "" and result.page_count == 2
    assert all(page.startswith(b"\x89PNG") for page in result.pages) and len(result.pages) == 2
    assert result.page_texts[0] == ("The header", "Title\nText.", "Footer 1")
    assert result.page_texts[1] == ("The header", "More.", "Footer 2")
    assert result.body == "Title\nText.\nMore." and "The header" in result.text
    assert 0 < result.seconds < 10


def test_the_samples_compile(pairs) -> None:
    with Typesetter() as typesetter:
        results = list(typesetter.compile_many(pair["output"] for pair in pairs))
    assert [result.error for result in results] == [""] * len(pairs)


def test_an_error_has_line_column_and_hint(typesetter) -> None:
    result = typesetter.compile("= Good\nÄ #let x = \n")
    assert not result.ok and result.pdf == b"" and result.page_count == 0
    (error,) = result.diagnostics
    assert (error.severity, error.message, error.line, error.column) == ("error", "expected expression", 2, 11)
    assert "if you meant to use subtraction" in typesetter.compile("#(a-b)").diagnostics[0].hint


def test_all_errors_are_reported_and_the_warnings_of_good_documents_too(typesetter) -> None:
    assert len(typesetter.compile("#(1 + )\n\n#(2 * )").diagnostics) == 2
    good = typesetter.compile('#set text(font: "No Such Font")\nHello')
    assert good.ok and [diagnostic.severity for diagnostic in good.diagnostics] == ["warning"]


def test_many_threads_share_a_typesetter(typesetter) -> None:
    texts: dict[int, str] = {}

    def work(number: int) -> None:
        texts[number] = typesetter.compile(f"Number {number}").text

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"Number {number}" for number in range(12)}


def test_compile_many_consumes_its_input_lazily() -> None:
    consumed = []

    def sources() -> Iterator[str]:
        for number in range(1000):
            consumed.append(number)
            yield f"Number {number}"

    with Typesetter(workers=1) as typesetter:
        results = typesetter.compile_many(sources())
        assert next(results).text == "Number 0" and len(consumed) < 10
        results.close()


def test_missing_fonts_are_logged_once() -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    typesetter_module.log.addHandler(handler)
    with Typesetter(workers=1) as typesetter:
        for _ in range(3):
            typesetter.compile('#set text(font: "No Such Font")\nHello')
        typesetter.compile('#set text(font: ("Another One", "No Such Font"))\nHello')
    typesetter_module.log.removeHandler(handler)
    assert len(messages) == 2 and "no such font" in messages[0] and "another one" in messages[1]


def test_font_paths_are_searched(tmp_path, typesetter) -> None:
    import shutil

    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    shutil.copy(fonts / "cmtt10.ttf", tmp_path)
    source = '#set text(font: "cmtt10")\nHello'
    assert typesetter.compile(source).diagnostics
    with Typesetter(workers=1, font_paths=[str(tmp_path)]) as with_fonts:
        assert with_fonts.compile(source).diagnostics == ()


def test_messages_contain_no_terminal_control_characters(typesetter) -> None:
    assert "\x1b" not in typesetter.compile('#panic("\\u{1b}[31mred")').error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_s", 0),
        ("memory_mib", 1),
        ("memory_mib", 1 << 60),
        ("workers", 0),
        ("assets_dir", "/no/such"),
        ("font_paths", ["/no"]),
        ("font_paths", "/no"),
    ],
)
def test_invalid_settings_are_named(name, value) -> None:
    with pytest.raises(UserError) as error:
        Typesetter(**{name: value})
    assert error.value.setting == f"typesetting.{name}"


def test_the_image_of_a_large_page_is_scaled_down(typesetter) -> None:
    import io

    from PIL import Image

    result = typesetter.compile("#set page(width: 4900pt, height: 4900pt)\nx", ppi=300)
    width, height = Image.open(io.BytesIO(result.pages[0])).size
    assert result.ok and 24e6 < width * height < 26e6


def test_real_reports_compile() -> None:
    """Needs real reports: TYPST_LIT_REPORTS=pairs.json"""
    path = os.environ.get("TYPST_LIT_REPORTS")
    if not path:
        pytest.skip("TYPST_LIT_REPORTS is not set to a file of real pairs")
    sources = [pair["output"] for pair in json.loads(Path(path).read_text("utf-8"))]
    with Typesetter(normalize_paths=True) as typesetter:
        results = list(typesetter.compile_many(sources))
    assert [result.error for result in results if not result.ok] == []
