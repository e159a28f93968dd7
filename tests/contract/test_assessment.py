from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from typst_lit.contract import TextContract, assess
from typst_lit.contract.assessment import invented_words, missing_lines
from typst_lit.metrics.functional import content_fidelity
from typst_lit.typesetting.repairs import repair
from typst_lit.typesetting.typesetter import Typesetter

CONTRACT = TextContract(num_pairs=3, typst_version="0.15.2", min_fidelity=0.9, style_words=("page", "contents"))
TEXT = "Rain\n\nIt rains more than it did.\n\nWe measured how much."
SOURCE = "#set page(footer: [Page 1])\n= Rain\nIt rains more than it did.\n\nWe measured how much."


@pytest.fixture(scope="module")
def typesetter() -> Iterator[Typesetter]:
    with Typesetter(workers=1) as typesetter:
        yield typesetter


def test_a_document_with_the_text_of_its_record_is_clean(typesetter) -> None:
    fields = {"title": "Hill Farms", "text": TEXT}
    result = typesetter.compile(SOURCE)
    assessment = assess(fields, "text", result, CONTRACT)
    assert assessment.clean is True and assessment.problems == ()
    assert (assessment.fidelity, assessment.missing_lines, assessment.invented_words) == (1, (), ())
    assert assess(fields, "text", typesetter.compile(SOURCE + " Hill Farms."), CONTRACT).clean  # words of other fields
    unknown = assess(fields, "text", result, None)
    assert unknown.clean is None and unknown.invented_words is None and unknown.missing_lines == ()


@pytest.mark.parametrize(
    ("source", "finish_reason", "problem"),
    [
        (SOURCE.replace("It rains more than it did.", ""), "stop", '1 line missing: "It rains more than it did."'),
        (SOURCE.replace("Rain\n", "Rain and snow of last winter\n"), "stop", "invented: and, snow, of, last, winter"),
        (SOURCE, "length", "cut off at the token limit"),
        (SOURCE + " #foo", "stop", "does not compile: line 5, column 24: unknown variable: foo"),
        (SOURCE.replace("Rain\n", "Rain a b c d e f g h i page\n"), "stop", ""),
    ],
    ids=["missing", "invented", "cut off", "failed", "list letters"],
)
def test_each_problem_is_named(typesetter, source, finish_reason, problem) -> None:
    result = typesetter.compile(source)
    assessment = assess({"text": TEXT}, "text", result, CONTRACT, finish_reason=finish_reason)
    assert assessment.clean is (not problem)
    assert assessment.problems[:1] == ((problem,) if problem else ())
    assert (assessment.missing_lines is None) == (assessment.invented_words is None) == (not result.ok)


def test_a_repaired_document_is_not_clean(typesetter) -> None:
    result, repairs = repair(typesetter.compile(SOURCE + " #foo"), typesetter, cut_off=False)
    assessment = assess({"text": TEXT + " #foo"}, "text", result, CONTRACT, repairs)
    assert result.ok and assessment.clean is False and assessment.fidelity == 1
    assert assessment.problems == ("repaired: line 5, column 23: escaped a stray #",)


def test_little_missing_text_is_accepted_as_in_training(typesetter) -> None:
    result = typesetter.compile(SOURCE.replace("how much", "how"))
    accepted = assess({"text": TEXT}, "text", result, CONTRACT)
    assert accepted.clean and 0.9 <= accepted.fidelity < 1 and accepted.missing_lines == ("We measured how much.",)
    strict = assess({"text": TEXT}, "text", result, replace(CONTRACT, min_fidelity=0.99))
    assert strict.problems == ('1 line missing: "We measured how much."',)


def test_lines_of_any_length_are_quoted_in_short(typesetter) -> None:
    lines = ["long words " * 40, "more of them"]
    assessment = assess({"text": "\n".join(lines)}, "text", typesetter.compile("nothing"), CONTRACT)
    assert assessment.missing_lines == (lines[0].strip(), lines[1])
    assert assessment.problems[0].startswith('2 lines missing: "long words') and len(assessment.problems[0]) < 90
    many = " ".join(f"word{letter}" for letter in "abcdefgh")
    assessment = assess({"text": "rain"}, "text", typesetter.compile(f"rain {many}"), CONTRACT)
    assert assessment.problems == ("invented: worda, wordb, wordc, wordd, worde, and 3 more",)


@pytest.mark.parametrize(
    ("record", "document", "missing"),
    [
        ("", "anything", ()),
        ("\n \n---\n", "", ()),  # no words
        ("Rain\nRain", "Rain", ("Rain",)),  # twice in the record, once in the document
        ("Rain\nRain falls.", "Rain falls.", ("Rain",)),  # the heading is missing, though a paragraph has its word
        ("Caption\n1 2 3", "1 2 3\nCaption", ()),  # in another order
        ("One\nTwo\nThree", "Three\nTwo\nOne", ()),
        ("See figures/rain.png", "See", ()),
        ('#image("figures/rain.png")\nRain', "Rain", ("#image(\"figures/rain.png\")",)),  # its code is not shown
        ("The well-known state--of", "The well-\nknown state–of", ()),
        ("See https://example.org/rain for it.", "See https://exam\nple.org/\nrain for it.", ()),
        ("one two three four five six seven eight nine ten", "one two three four five six seven eight ten", ()),
        ("one two three four five", "one two three four", ("one two three four five",)),
        ("東京で雨が降る。", "東京で雨が\n降る。", ()),
        ("東京で雨が降る。", "東京で雪が降る。", ("東京で雨が降る。",)),
        ("مرحبا بالعالم\nשלום עולם", "مرحبا بالعالم", ("שלום עולם",)),
        ("हिन्दी में बारिश", "हिन्दी मेंबारिश", ()),  # PDF loses the space
    ],
)  # fmt: skip
def test_missing_lines(record, document, missing) -> None:
    assert missing_lines(record, document) == missing


@pytest.mark.parametrize(
    ("record", "document", "invented"),
    [
        ("Rain", "RAIN Page 3 of iv: 12 (b)", ("of",)),
        ("Rain", "rain xii mix vivid", ("mix", "vivid")),  # Roman numerals are no words, words of their letters are
        ("See https://example.org/rain", "See https://exam\nple.org/rain", ()),
        ("fine-tuned state--of", "fine-\ntuned state–of finetuned", ()),
        ("हिन्दी में बारिश", "हिन्दी मेंबारिश", ()),
        ("東京で雨が降る。", "東京で雪が降る。", ("雪",)),
        ("Dept of IT", "Dept of ITPage 3", ()),  # the two sides of a header touch
        ("Cat s", "Cats", ("cats",)),
        ("Rain. Rain.", "Rain snow rain snow", ("snow",)),
        ("", "", ()),
    ],
)
def test_invented_words(record, document, invented) -> None:
    assert invented_words(record, document, CONTRACT) == invented


def test_urls_that_a_narrow_page_breaks_are_not_lost(typesetter) -> None:
    text = "See https://example.org/averylongpathwithoutanyspacesorhyphens/another?query=abcdefghijklmnop for it."
    escaped = text.replace("//", "\\/\\/")
    for width in ("4cm", "6cm", "12cm"):
        result = typesetter.compile(f"#set page(width: {width}, margin: 1cm)\n#set text(hyphenate: true)\n{escaped}")
        assessment = assess({"text": text}, "text", result, CONTRACT)
        assert assessment.clean and assessment.fidelity == 1 and assessment.missing_lines == (), result.text
    assert content_fidelity("example", "exam\nple") == 1 and content_fidelity("12 3", "1 23") < 1
