"""Lines of records that would do something else in Typst than to show their characters."""

from __future__ import annotations

HOSTILE_TEXTS = [
    "#panic()", '#read("/etc/passwd")', "#let x = 1", "#set page(width: 1pt)", "#{while true {}}", "$x^2$ costs $5",
    "*bold* and _emph_", "2 * 3 * 4", "snake_case_name", "`raw` and ```more```", "<label> and a <b", "@ref and a@b.org",
    "C:\\path\\new", "trailing \\", "[open", "close]", "[1] see [2]", "a // no comment", "a /* no comment */ b", "*/",
    "https://example.org/a_b?c=*d*", "ftp://x//y", '"quoted"', "don't", "~tilde~", "100 % & more", "#", "##", "$", "\\",
    "emoji 👩‍🚀 here", "שלום עולם", "مرحبا", "世界", "a\u0301 accent", "#text(red)[x]", "\\u{41}", "#include \"x.typ\"",
]  # fmt: skip
