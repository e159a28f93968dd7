"""Repairs: documents that almost compile are repaired where that needs no guessing; all others stay as they are."""

from __future__ import annotations

import pytest

from typst_lit.typesetting.repairs import repair


@pytest.mark.parametrize(
    ("source", "repairs", "text"),
    [
        ("Text at #foo and more.", ["line 1, column 9: escaped a stray #"], "Text at #foo and more."),
        ("Text # and more.", ["line 1, column 6: escaped a stray #"], "Text # and more."),
        ("It costs $ 5.\n\nNext.", ["line 1, column 10: escaped a stray $"], "It costs $ 5.\nNext."),
        ("for $price each, $more", ["line 1, column 5: escaped stray $"], "for $price each, $more"),
        ("mail me @home", ["line 1, column 9: escaped a stray @"], "mail me @home"),
        ("= A <a>\nsee @a", ["line 2, column 5: escaped a stray @"], "A\nsee @a"),
        ("if a <b then", ["line 1, column 6: escaped a stray <"], "if a <b then"),
        ("Some *bold", ["line 1, column 6: escaped a stray *"], "Some *bold"),
        ("Some _word", ["line 1, column 6: escaped a stray _"], "Some _word"),
        ("Some `word", ["line 1, column 6: escaped a stray `"], "Some `word"),
        ("Some ] text", ["line 1, column 6: escaped a stray ]"], "Some ] text"),
        ("$ ab = c $", ["line 1, column 3: quoted ab in the formula"], "ab = 𝑐"),
        ("#text(fill: red)[\n  Red.\n\nNext.", ["line 2, column 7: closed the [ of line 1"], "Red.\nNext."),
        ("#align(center)[#text(9pt)[Small]\n\nNext.", ["line 1, column 33: closed the [ of line 1"], "Small\nNext."),
        (
            "#figure(\n rect(),\n caption: [It\n)\n\nOn.",
            ["line 3, column 14: closed the [ of line 3"],
            "Figure\xa01: It\nOn.",
        ),
        (
            "*One #foo @bar $5.\n\nNext _one.",
            [
                "line 1, column 1: escaped a stray *",
                "line 1, column 17: escaped a stray $",
                "line 3, column 6: escaped a stray _",
                "line 1, column 7: escaped a stray #",
                "line 1, column 13: escaped a stray @",
            ],
            "*One #foo @bar $5.\nNext _one.",
        ),
    ],
)
def test_stray_marks_and_open_brackets(typesetter, source, repairs, text) -> None:
    broken = typesetter.compile(source)
    assert not broken.ok
    repaired, done = repair(broken, typesetter, cut_off=False)
    assert repaired.ok and repaired.text == text
    assert [str(step) for step in done] == repairs


@pytest.mark.parametrize(
    ("source", "description", "text"),
    [
        ("Text.\n\n#figure(rect(), caption: [Half a cap", "closed what was open at the end: ])", "Half a cap"),
        ("Text.\n\n#figure(rect(),\n  caption: ", "closed what was open at the end: )", "Text."),
        ("Text.\n\n```\nx = 1", "closed what was open at the end: ```", "x = 1"),
        ('Text.\n\n#let a = "abc', 'closed what was open at the end: "', "Text."),
        ("Text.\n\n#set page(\n  margin: (top: 1in, bot", "closed what was open at the end: ))", "Text."),
        ("Text.\n\nMore *bold", "escaped a stray *", "More *bold"),
        ("Text.\n\n#figure(image(", "removed the unfinished end (1 line)", "Text."),
    ],
)
def test_a_document_that_was_cut_off(typesetter, source, description, text) -> None:
    broken = typesetter.compile(source)
    assert not broken.ok
    repaired, done = repair(broken, typesetter, cut_off=True)
    assert repaired.ok and text in repaired.text and repaired.text.startswith(("Text.", "More"))
    assert [step.description for step in done] == [description]


@pytest.mark.parametrize(
    "source",
    [
        '#panic("no")',
        "#table(columns: 2, columns: 3)[a]",
        "#figure(image(",
        "*One\n\n#panic()",
        '#text("abc)[x]',
        "#let f(x) = f(x + 1)\n#f(1)",
        '#read("secret")',
        "$ x $ #bar()",
        "$ x $ and #{foo}",
    ],
)
def test_a_document_without_a_certain_repair_is_unchanged(typesetter, source) -> None:
    broken = typesetter.compile(source)
    assert not broken.ok
    assert repair(broken, typesetter, cut_off=False) == (broken, ())


def test_a_document_that_compiles_is_unchanged(typesetter) -> None:
    good = typesetter.compile("= A\n\nText.")
    assert repair(good, typesetter, cut_off=True) == (good, ())


def test_a_document_cut_off_anywhere_is_repaired_or_unchanged(typesetter, pairs) -> None:
    source = pairs[2]["output"]
    num_repaired = 0
    for length in range(20, len(source), 23):
        result, repairs = repair(typesetter.compile(source[:length]), typesetter, cut_off=True)
        assert result.ok == bool(repairs) or result.source == source[:length]
        num_repaired += result.ok
    assert num_repaired > 0.8 * len(range(20, len(source), 23))
