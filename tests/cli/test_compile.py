from __future__ import annotations


def test_files_and_folders_are_compiled_one_by_one(tmp_path, run) -> None:
    (tmp_path / "good.typ").write_text('= Good\n#image("a.png", width: 2cm)')
    (tmp_path / "bad.typ").write_text("#bad")
    (tmp_path / "bad.pdf").write_text("of an earlier source")
    result = run("compile", tmp_path, "--ppi", 72)
    assert result.status == 1 and (tmp_path / "good.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "bad.pdf").exists() and (tmp_path / "good-1.png").read_bytes().startswith(b"\x89PNG")
    assert "good.pdf: 1 page, with stand-ins for a.png" in result.out
    assert "bad.typ: no PDF: error: line 1, column 2: unknown variable: bad" in result.out
    assert "1 of 2 documents compiled" in result.out and "1 of 2 documents have no PDF" in result.err
    assert run("compile", tmp_path / "good.typ").status == 0


def test_what_is_not_there_is_named(tmp_path, run) -> None:
    assert "no.typ: is not there" in run("compile", tmp_path / "no.typ").err
    assert "holds no .typ file" in run("compile", tmp_path).err
    pdf = tmp_path / "mine.pdf"
    pdf.write_bytes(b"mine")
    assert "is no .typ file" in run("compile", pdf).err and pdf.read_bytes() == b"mine"
    (tmp_path / "a.typ").write_text("a")
    assert "--ppi must be" in run("compile", tmp_path, "--ppi", -5).err


def test_typesetting_options_are_taken(tmp_path, run) -> None:
    (tmp_path / "a.typ").write_text("#for i in range(5) [x #pagebreak()]")
    result = run("compile", tmp_path, "--typesetting.max_pages", 3)
    assert result.status == 1 and "6 pages, but the maximum is 3" in result.out
    error = run("compile", tmp_path, "--typesetting.timeout_s", 0).err
    assert "typesetting.timeout_s" in error and "must be between 0.1 and" in error
