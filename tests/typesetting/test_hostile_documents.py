"""Documents that attack the compiler or the machine: each fails in time, and no other document is affected."""

from __future__ import annotations

import pytest

from typst_lit.typesetting.typesetter import Typesetter

# name: (source, alternatives of what the error must say)
HOSTILE = {
    "read absolute": ('#read("/etc/passwd")', "file not found"),
    "read parent": ('#read("../../../../etc/passwd")', "escape"),
    "read environment": ('#read("/proc/self/environ")', "file not found"),
    "read folder": ('#read(".")', "is a directory"),
    "image absolute": ('#image("/etc/passwd")', "file not found"),
    "include": ('#include "/etc/passwd"', "file not found"),
    "json": ('#json("/etc/passwd")', "file not found"),
    "read in eval": ('#eval("read(\\"/etc/passwd\\")")', "file not found"),
    "svg link": ("#image(bytes(\"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>\"))", "SVG"),
    "package": ('#import "@preview/cetz:0.3.0"', "packages can't be imported"),
    "local package": ('#import "@local/mine:0.1.0"', "packages can't be imported"),
    "endless for": ("#for i in range(100000) { for j in range(100000) { } }", "longer than"),
    "endless while": ("#let x = 1\n#while x > 0 { x += 1 }", "infinite"),
    "recursion": ("#let f(x) = f(x + 1)\n#f(1)", "depth exceeded"),
    "nested": ("$" + "sqrt(" * 5000 + ")" * 5000 + "$", "depth exceeded"),
    "unclosed": ("[" * 3_000_000, "nested too deeply|memory|longer than"),
    "array bomb": ("#let a = (0,)\n#for i in range(60) { a = a + a }", "memory|longer than"),
    "string bomb": ('#let s = "aaaaaaaa"\n#for i in range(60) { s = s + s }\n#s', "memory|longer than"),
    "repeat bomb": ('#("a" * 100000000000)', "memory|longer than"),
    "content bomb": ("#let c = [aaaa]\n#for i in range(40) { c = c + c }\n#c", "memory|longer than"),
    "long text": ("#lorem(100000000)", "longer than|memory"),
    "huge page": ("#set page(width: 100000pt, height: 100000pt)\nx", "max_page_pt"),
    "endless page": ("#set page(height: auto)\n#v(100000pt)\nx", "max_page_pt"),
    "ten thousand pages": ("#for i in range(10000) [x #pagebreak()]", "10001 pages"),
    "large source": ("word " * 2_000_000, "max_source_mib"),
    "not UTF-8": (b"\xff\xfe= A", "not valid Unicode"),
    "half a surrogate": ("\ud800", "not valid Unicode"),
    "panic": ('#panic("stop")', "panicked with: stop|stop"),
    "name too long": ('#image("' + "a" * 300 + '.png")', "name too long"),
    "file as folder": ('#image("a.png")\n#image("a.png/b.png")', "directory"),
}
# A WebAssembly module by hand: a memory, and a function `f` that loops forever.
WASM_LOOP = bytes.fromhex(
    "0061736d01000000" "0105016000017f" "03020100" "0503010001" "070e02066d656d6f727902000166" "0000"
    "0a0b010900" "03400c000b" "41000b"
)  # fmt: skip
HOSTILE["plugin"] = (f"#plugin(bytes(({', '.join(map(str, WASM_LOOP))}))).f()", "longer than")
HARMLESS = {
    "NUL": "a\0b",
    "NUL in code": '#let x = "\\u{0}"\n#x',
    "layout that never settles": '#let s = state("x", 0)\n#context s.update(s.final() + 1)\n#context s.final()',
    "show rule on itself": '#show "a": it => [a a]\na',
    "entity bomb": '#xml(bytes("<!DOCTYPE a [<!ENTITY b \\"aaaa\\"><!ENTITY c \\"&b;&b;&b;\\">]><a>&c;</a>"))\nx',
}


def test_hostile_documents_fail_in_time_and_affect_no_other() -> None:
    good = "= Still here"
    sources = [piece for source, _ in HOSTILE.values() for piece in (source, good)] + list(HARMLESS.values())
    with Typesetter(workers=2, timeout_s=3, memory_mib=1024) as typesetter:
        results = list(typesetter.compile_many(sources, ppi=36))
    hostile, others = results[: 2 * len(HOSTILE) : 2], results[1 : 2 * len(HOSTILE) : 2]
    assert all(result.ok for result in others)
    for (name, (_, errors)), result in zip(HOSTILE.items(), hostile, strict=True):
        assert not result.ok and result.pdf == b"" and result.pages == () and result.text == "", name
        assert any(part in result.error for part in errors.split("|")), (name, result.error)
        assert "root:" not in str(result.diagnostics), name
    for name, result in zip(HARMLESS, results[2 * len(HOSTILE) :], strict=True):
        assert result.ok, (name, result.error)
    assert max(result.seconds for result in results) < 3 + 1 + 2  # two more, because the start of a process counts here


def test_only_200_missing_files_are_replaced() -> None:
    with Typesetter(workers=1, timeout_s=60) as typesetter:  # it compiles again for each file: slow on a busy machine
        result = typesetter.compile('#for i in range(1000) { image("p" + str(i) + ".png") }')
    assert "file not found: p200.png" in result.error


SVG_WITH_LINK = (
    "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'>"
    "<a href='javascript:svg'><rect width='9' height='9'/></a><script>alert(1)</script></svg>"
)
# name: (source, what the warnings name)
ACTIVE = {
    "link": ('#link("javascript:app.alert(1)")[x]', ["javascript:app.alert(1)"]),
    "show rule": ('#show "foo": it => link("file:///etc/passwd", it)\nfoo foo', ["file:///etc/passwd"]),
    "background": ('#set page(background: link("cmd:x")[b])\nx', ["cmd:x"]),
    "footnote and outside of the page": (
        '#footnote[#link("vbscript:x")[a]] #place(dx: 9000pt, link("data:text/html,x")[b])',
        ["data:text/html,x", "vbscript:x"],
    ),
    "eval": ('#eval("[#link(\\"a\\" + \\"b:c\\")[x]]")', ["ab:c"]),
    "bibliography": ('#bibliography(bytes("@misc{a, title={A}, url={javascript:x}}"))\n@a', ["javascript:x"]),
    "relative": ('#link("other.pdf")[x] #link("\\u{a0}http://example.org")[y]', ["other.pdf", "http://example.org"]),
    "attachment": ('#pdf.attach("evil.exe", bytes("MZ"))x', ["evil.exe"]),
    "invisible name": ('#pdf.attach("a\\u{202e}fdp.exe", bytes("MZ"))x', ["a fdp.exe"]),
    "second page": ('x #pagebreak() #link("smb:x")[y]', ["link on page 2 opens smb:x"]),
}
INACTIVE = {
    "web": '#link("https://example.org/ü")[x] #link("HTTP://example.org")[y]',
    "mail and telephone": '#link("mailto:a@example.org")[x] #link("tel:+1")[y]',
    "inside the document": '#set heading(numbering: "1")\n#outline()\n= A <a>\n@a #link((page: 1, x: 0pt, y: 0pt))[x]',
    "SVG": f'#image(bytes("{SVG_WITH_LINK}"))',
}


@pytest.mark.parametrize("name", ACTIVE)
def test_unusual_links_and_attachments_are_warnings(typesetter, name) -> None:
    source, parts = ACTIVE[name]
    result = typesetter.compile(source)
    assert result.ok and [diagnostic.severity for diagnostic in result.diagnostics] == ["warning"] * len(parts)
    assert all(part in str(diagnostic) for part, diagnostic in zip(parts, result.diagnostics, strict=True))


@pytest.mark.parametrize("name", INACTIVE)
def test_usual_links_are_not_warnings(typesetter, name) -> None:
    result = typesetter.compile(INACTIVE[name])
    assert result.ok and result.diagnostics == ()


def test_a_pdf_image_brings_neither_links_nor_attachments(typesetter) -> None:
    image = typesetter.compile('#link("javascript:x")[x]#pdf.attach("inner.exe", bytes("MZ"))')
    assert len(image.diagnostics) == 2
    result = typesetter.compile(f'#image(bytes(({", ".join(map(str, image.pdf))})), format: "pdf")')
    assert result.ok and result.diagnostics == ()


def test_warnings_of_links_are_limited(typesetter) -> None:
    result = typesetter.compile('#for i in range(50) { link("x:" + str(i))[a]; link("x:1")[b] }')
    assert len(result.diagnostics) == 21 and str(result.diagnostics[-1]) == "warning: 30 more unusual links"
