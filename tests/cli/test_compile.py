from __future__ import annotations


def test_files_and_directories_are_compiled_to_pdfs(tmp_path, run) -> None:
    (tmp_path / "good.typ").write_text('= Good\n#image("a.png", width: 2cm)')
    (tmp_path / "bad.typ").write_text("#bad")
    (tmp_path / "bad.pdf").write_text("of an earlier source")
    result = run("compile", tmp_path, "--ppi", 72)
    assert result.status == 1 and (tmp_path / "good.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "bad.pdf").exists() and (tmp_path / "good-1.png").read_bytes().startswith(b"\x89PNG")
    assert "good.pdf: 1 page, with placeholder images for a.png" in result.out
    assert "bad.typ: no PDF: error: line 1, column 2: unknown variable: bad" in result.out
    assert "1 of 2 documents compiled" in result.out and "1 of 2 documents have no PDF" in result.err
    assert run("compile", tmp_path / "good.typ").status == 0


def test_invalid_arguments_are_named(tmp_path, run) -> None:
    assert "no.typ: does not exist" in run("compile", tmp_path / "no.typ").err
    assert "contains no .typ files" in run("compile", tmp_path).err
    pdf = tmp_path / "mine.pdf"
    pdf.write_bytes(b"mine")
    assert "is not a .typ file" in run("compile", pdf).err and pdf.read_bytes() == b"mine"
    (tmp_path / "a.typ").write_text("a")
    assert "--ppi: must be above 0, not -5.0" in run("compile", tmp_path, "--ppi", -5).err
    nothing = run("compile")
    assert nothing.status == 2 and "no files are given" in nothing.err


def test_typesetting_options_are_applied(tmp_path, run) -> None:
    (tmp_path / "a.typ").write_text("#for i in range(5) [x #pagebreak()]")
    for flag in ("--typesetting.max_pages", "--typesetting.max-pages"):
        result = run("compile", tmp_path, flag, 3)
        assert result.status == 1 and "6 pages" in result.out and "3" in result.out
    assert "typesetting.timeout_s" in run("compile", tmp_path, "--typesetting.timeout_s", 0).err
