from __future__ import annotations

import json
import time

import pytest

from tests.conftest import SAMPLES
from typst_lit.typesetting.compiling import compile_folder, compile_source


@pytest.mark.parametrize("index", [0, 5, 10])
def test_the_samples_compile(index) -> None:
    result = compile_source(json.loads(SAMPLES.read_text())[index]["output"])
    assert result.ok and result.pdf.startswith(b"%PDF")


def test_an_error_gives_its_reason() -> None:
    result = compile_source("#let x = ")
    assert not result.ok and "expected expression" in result.reason


def test_nothing_outside_can_be_read(tmp_path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    for path in (str(tmp_path / "secret.txt"), "../secret.txt", "/etc/passwd"):
        assert not compile_source(f'#read("{path}")').ok


def test_a_document_without_end_is_stopped() -> None:
    started = time.monotonic()
    result = compile_source("#for i in range(100000) { for j in range(100000) { } }", timeout_s=2)
    assert not result.ok and "longer than 2 s" in result.reason
    assert time.monotonic() - started < 5


def test_a_folder_is_compiled_file_by_file(tmp_path, capsys) -> None:
    (tmp_path / "good.typ").write_text("= Good")
    (tmp_path / "bad.typ").write_text("#bad")
    assert compile_folder(tmp_path) == 1
    assert (tmp_path / "good.pdf").read_bytes().startswith(b"%PDF") and not (tmp_path / "bad.pdf").exists()
    assert "1 of 2 documents compiled" in capsys.readouterr().out
