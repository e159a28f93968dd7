"""The syntax state against the real parser."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from importlib.resources import files

import pytest
import typst

from benchmarks.syntax import DELIMITER_ERROR, syntax_errors
from typst_lit.typesetting.syntax import START, SyntaxState, advance, closers, may_end

VALID = [
    "#set text(red) if true\n#set math.equation(block: true)\n#show heading: set text(red)\n#show: it => it",
    "#show /**/ <a>: [b]",
    "Plain text, 2*3*4, snake_case_name and a~b -- c --- d ... e.",
    "*Strong*, _emph_, *both _nested_ here*, a*b*c d_e_f, 中*文*字.",
    "*over\ntwo lines* and _ten\n// a comment\nlines_",
    "= Heading *with strong*\n== Another <label> *after*\n=not a heading [a\n",
    "- one\n  - two *strong*\n    more\n- three\n+ four\n12. five\n/ Term *bold*: description\n/ http://a.b/c: linked",
    "*a\n- b *c*\n\n d* e*\nf*",
    "#[- a [b] \n- c]#[= d]",
    "[text in [brackets] (and) {others}] \\] \\[ \\* \\_ \\$ \\# \\\\ \\u{1F600} \\\nbreak",
    "`raw *` ``` let x = `y` ``` `` ````typ\n```\n````\n",
    "// comment *\n/* block /* nested */ ` */ text ftp://x *\n",
    "See https://example.com/a_b*c(d)[e], or http://a.b. *https://c.d/ *",
    "@label @label:a.b. @label[supplement *x*] a@b.c <label> a < b",
    '$x^2$ $ f(x) + [0, 1) $ $ sin(x) / vec(a, b; c) $ $ x^) (a] "text $" \\$ #y.z $ $ mat(1, (2; 3)) $',
    "$ arrow.r(x) |] a_(b) root(3, x) √(x) /* $ */ // $\n $",
    "#let x = 1 + (2\n) // comment\n#let f(a, b: [c]) = { a + [*d*] }\n#let g = it => $it$; after",
    "#set text(size: 12pt) if true\n#show heading: it => [\n= It\n]\n#show: doc => doc\n",
    '#import "a.typ": b, c\n#include "d.typ"; text',
    "#if x { } else if y [*a*] else [b] text #if z [a] else_where",
    "#if (a and b) or not c(d)[e].f { } #if a == [x] [y]",
    "#for x in range(3) [#x, ] #for (a, b) in c { } #while i < 3 { i += 1 } #while x [y]",
    "#context counter(page).display() text #context { 1 } #context [a]",
    '#x.y(z)[a][b].c and #x. And #x_y-z _#x;_ #1.5em.pt #"str\\"ing".len() #(1, 2).at(0) #{ }',
    '#f(a: 1, ..b, c: (d: [e]), `raw]`, <label>, $ ) $, /* ) */ ")")[*x*]',
    "#table(\n  columns: 2, // *)\n  [A], [B],\n)\n#[#let x = 1]\n*#[a\n\nb]*",
    "\"Quotes\" and 'apostrophes', 5' 6\", a/b, 1/2 and/or *\\/*",
    "a\r\nb\r\n*c\r\nd* \r\n\r\n- e\r\n",
    "#!shebang *\ntext",
    "#f(if a { b } else { c }, not d in e, ..f, g => -g, for x in y { x }, set text(red) if h, 1em + 2pt)",
    "#{\n  let a = b\n  c; d\n  import e: f as g\n} #let (x, y) = (1, 2)\n#let z = if x in (1,) { x } else [y]\n",
]
INVALID = [
    "a]", "#[a]]", "*a\n\nb", "_a\n\n", "#(a]", "#{a)", "#f(a;", "*/ a", "a <b c", "#let x = (]", "#[*a]",
    "/ term\n", "#if x\n", "# a", "#)", "$ sin(x $", "http://a(b ", "#let x = a \\ b", "\\u{1 ", "#if x; ",
    "#set\na", "#set text (red)", "#set text\n", "#set (a)", "#show\na",
    "#set let(", "#show set ", "#f(a b)", '#f("a" "b")', "#f([a] b)", "#{ a b }", "#let x = 1 y", "#f(and a c)",
]  # fmt: skip
FRAGMENTS = [
    "*", "_", "#", "[", "]", "(", ")", "{", "}", "$", '"', "`", "```", "\n", "\n\n", " ", "a", "let x = ", "if x ",
    "else ", "- ", "= ", "/ ", "// ", "/*", "*/", "<a>", "<", "@a", "http://a", "\\", ":", ";", ".b", "context ",
    "for x in y ", "show: ", "it => ", "^", "12pt", "#x", "#f(", "#[", "#let x = [", "#if x [", "1. ", "é", "中", ",",
    "show a: ", "set text", "(a)",
]  # fmt: skip


@pytest.fixture(scope="module")
def parse_errors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """A function that returns the syntax errors of a source; those of evaluation don't count."""
    return partial(syntax_errors, typst.Compiler(root=str(tmp_path_factory.mktemp("root"))))


def read(source: str, pieces: random.Random | None = None) -> SyntaxState | None:
    """Returns the state after a source, read at once or in pieces of random lengths."""
    state: SyntaxState | None = START
    while source and state is not None:
        length = pieces.randint(1, 5) if pieces else len(source)
        state, source = advance(state, source[:length]), source[length:]
    return state


def sample_documents() -> list[str]:
    samples = files("typst_lit") / "data/samples"
    return [
        pair["output"]
        for name in ("reports.json", "held_out.json")
        for pair in json.loads((samples / name).read_text("utf-8"))
        if "output" in pair
    ]


@pytest.mark.parametrize("source", VALID)
def test_valid_sources_are_accepted_and_nothing_is_open(source, parse_errors):
    assert not parse_errors(source.removeprefix("#!shebang *\n"))
    state = read(source)
    assert state is not None
    assert closers(state) == ""
    assert may_end(state)


@pytest.mark.parametrize("source", VALID)
def test_a_source_cut_anywhere_can_be_closed(source, parse_errors):
    for end in range(len(source)):
        prefix = source[:end]
        if prefix.startswith("#!"):
            continue
        state = read(prefix)
        assert state is not None, prefix
        closed = prefix + closers(state)
        assert not [error for error in parse_errors(closed) if DELIMITER_ERROR.match(error)], closed


def test_documents_of_the_samples_cut_anywhere_can_be_closed(parse_errors):
    generator = random.Random(0)
    documents = sample_documents()
    assert len(documents) > 20
    for source in documents:
        complete = read(source)
        assert complete is not None
        assert may_end(complete)
        for _ in range(10):
            prefix = source[: generator.randrange(len(source))]
            state = read(prefix)
            assert state is not None
            errors = parse_errors(prefix + closers(state))
            assert not [error for error in errors if DELIMITER_ERROR.match(error)], (prefix[-80:], closers(state))


@pytest.mark.parametrize("source", VALID)
def test_a_state_does_not_depend_on_the_pieces_that_were_read(source):
    generator = random.Random(0)
    for _ in range(20):
        prefix = source[: generator.randrange(len(source) + 1)]
        assert read(prefix, generator) == read(prefix)


@pytest.mark.parametrize("source", INVALID)
def test_what_cannot_become_valid_is_refused(source, parse_errors):
    assert parse_errors(source)
    assert read(source) is None
    assert read(source, random.Random(0)) is None


def test_sources_of_random_fragments_are_treated_as_the_parser_does(parse_errors):
    generator = random.Random(0)
    num_valid = num_closed = 0
    for _ in range(3000):
        source = "".join(generator.choices(FRAGMENTS, k=generator.randint(1, 12)))
        state = read(source)
        if not parse_errors(source):
            num_valid += 1
            assert state is not None, source  # what the parser accepts is never refused
            assert not closers(state) or "/*" in source, source  # the parser does not mind an open comment
        elif state is not None:
            errors = parse_errors(source + closers(state))
            num_closed += not errors
            only_delimiters = bool(errors) and all(DELIMITER_ERROR.match(error) for error in errors)
            assert not only_delimiters, (source, closers(state), errors)
    assert num_valid > 500
    assert num_closed > 500


def test_dangling_characters_do_not_swallow_what_closes():
    for source, expected in {
        "*a/": " *", "_a <": " _", "#f(\"a\\": "\\\")", "#[a\\": " ]", "#[#": "none;]", "_#x": ";_", "#[// a": "\n]",
        "#[http://a": " ]", "```py": "\n```", "$ x^": '""$', "*a\n- b": "\n*", "_@a": " _",
        "*#set te": "();*", "*#set a.": "x();*", "#[#set ": " text();]", "*#show ": " []: none;*",
    }.items():  # fmt: skip
        state = read(source)
        assert state is not None
        assert closers(state) == expected, source


def test_very_deep_nesting_is_refused_as_by_the_parser(parse_errors):
    source = "#" + "(" * 300
    assert parse_errors(source + ")" * 300)
    assert read(source) is None
