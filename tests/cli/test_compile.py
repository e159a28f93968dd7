from __future__ import annotations


def test_files_and_directories_are_compiled_to_pdfs(tmp_path, run) -> None:
    (tmp_path / "good.typ").write_text('= Good\n#image("a.png", width: 2cm)')
    (tmp_path / "bad.typ").write_text("#bad")
    (tmp_path / "bad.pdf").write_text("of an earlier source")
    result = run("compile", tmp_path, "--ppi", 72)
    assert result.status == 1 and (tmp_path / "good.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "bad.pdf").read_text() == "of an earlier source"
    assert (tmp_path / "good-1.png").read_bytes().startswith(b"\x89PNG")
    assert "good.pdf: 1 page, with placeholder images for a.png" in result.out
    assert "bad.typ: no PDF: error: line 1, column 2: unknown variable: bad" in result.out
    assert f"({tmp_path / 'bad.pdf'} is of an earlier version; it was not changed)" in result.out
    assert (
        "1 of 2 documents compiled" in result.out and "1 of 2 documents could not be compiled or written" in result.err
    )
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


def test_warnings_are_printed_below_the_document_and_missing_fonts_once(tmp_path, run) -> None:
    source = '#set text(font: "No Such Font")\n#link("javascript:x")[x]#pdf.attach("evil.exe", bytes("MZ"))'
    (tmp_path / "a.typ").write_text(source)
    result = run("compile", tmp_path)
    assert result.status == 0 and result.out.splitlines()[1:3] == [
        "  warning: the PDF has an attached file: evil.exe (PDF readers offer to open it)",
        "  warning: a link on page 1 opens javascript:x (only http, https, mailto and tel are usual)",
    ]
    assert "no such font" not in result.out


def test_typesetting_options_are_applied(tmp_path, run) -> None:
    (tmp_path / "a.typ").write_text("#for i in range(5) [x #pagebreak()]")
    for flag in ("--typesetting.max_pages", "--typesetting.max-pages"):
        result = run("compile", tmp_path, flag, 3)
        assert result.status == 1 and "6 pages" in result.out and "3" in result.out
        assert "the limit is --typesetting.max_pages" in result.out and "`" not in result.out
    assert "typesetting.timeout_s" in run("compile", tmp_path, "--typesetting.timeout_s", 0).err


def test_files_of_the_user_are_neither_deleted_nor_written_through(tmp_path, run) -> None:
    directory = tmp_path / "documents"
    directory.mkdir()
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    (directory / "thesis.typ").write_text('#import "@preview/cetz:0.3.0"')
    (directory / "thesis.pdf").write_bytes(b"%PDF of the user's own compiler")
    (directory / "ok.typ").write_text("= OK")
    (directory / "ok.pdf").symlink_to("../precious.txt")
    result = run("compile", directory)
    assert result.status == 1 and "1 of 2 documents compiled" in result.out
    assert (directory / "thesis.pdf").read_bytes() == b"%PDF of the user's own compiler"
    assert precious.read_text() == "precious"
    assert not (directory / "ok.pdf").is_symlink() and (directory / "ok.pdf").read_bytes().startswith(b"%PDF-1")


def test_images_of_the_user_are_replaced_only_on_request(tmp_path, run) -> None:
    (tmp_path / "a.typ").write_text("= A\n#pagebreak()\n= B")
    (tmp_path / "a-2.png").write_bytes(b"mine")
    refused = run("compile", tmp_path, "--ppi", 20)
    assert refused.status == 1 and "a-2.png: already exists" in refused.out and "--overwrite" in refused.out
    assert (tmp_path / "a-2.png").read_bytes() == b"mine" and not (tmp_path / "a-1.png").exists()
    assert not (tmp_path / "a.pdf").exists()
    assert run("compile", tmp_path, "--ppi", 20, "--overwrite").status == 0
    assert (tmp_path / "a-2.png").read_bytes().startswith(b"\x89PNG")
    assert run("compile", tmp_path, "--ppi", 20).status == 0  # now they are of this program
