from __future__ import annotations

import random

import pytest

from typst_lit.metrics.functional import content_fidelity, edit_similarity, field_presence, invention, words
from typst_lit.typesetting.results import PageText
from typst_lit.typesetting.typesetter import Typesetter


def page(body: str, header: str = "", footer: str = "") -> PageText:
    return PageText(header, body, footer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The ﬁne “quoted” model’s HEAD", ["the", "fine", "quoted", "model's", "head"]),
        ("state-of-the-\nart 768-\ndimensional", ["stateoftheart", "768", "dimensional"]),
        ("CHAPTER- I - two–three a — b", ["chapter", "i", "twothree", "a", "b"]),
        ("B.E/Dept, snake_case 2025-26 (3.5%)", ["b", "e", "dept", "snake", "case", "202526", "3", "5"]),
        ("排版 ok Straße ｆｕｌｌ", ["排", "版", "ok", "strasse", "full"]),
        ("", []),
    ],
)
def test_words(text, expected) -> None:
    assert words(text) == expected


def test_a_justified_page_has_the_words_of_its_source() -> None:
    text = " ".join(["Uncharacteristically long-winded internationalisation of state-of-the-art"] * 20)
    source = f"#set par(justify: true)\n#set page(width: 7cm, height: 30cm)\n#set text(lang: 'en')\n{text}".replace(
        "'", '"'
    )
    with Typesetter(workers=1) as typesetter:
        result = typesetter.compile(source)
    assert "-\n" in result.body  # otherwise the test would show nothing
    assert words(result.body) == words(text)


def naive_lcs(a: list[str], b: list[str]) -> int:
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def test_fidelity_agrees_with_a_naive_computation() -> None:
    rng = random.Random(0)
    for _ in range(50):
        record, shown = (rng.choices("abcdefgh", k=rng.randrange(1, 40)) for _ in range(2))
        expected = naive_lcs(record, shown) / len(record)
        assert content_fidelity(" ".join(record), " ".join(shown)) == pytest.approx(expected)
    assert content_fidelity("", "anything") is None and content_fidelity("a b", "") == 0


def test_invention_agrees_with_a_naive_computation() -> None:
    rng = random.Random(0)
    for _ in range(50):
        record, shown, reference = (rng.choices("abcdefgh", k=rng.randrange(1, 30)) for _ in range(3))
        invented = 0
        for letter in set(shown):
            invented += max(0, shown.count(letter) - max(record.count(letter), reference.count(letter)))
        score = invention(" ".join(record), [page(" ".join(shown))], [page(" ".join(reference))])
        assert score == pytest.approx(invented / len(shown))
    assert invention("a", []) is None


def test_invention_counts_headers_and_footers_once_without_numbers() -> None:
    pages = [page("one two", "My Title", f"Page {number}") for number in range(5)]
    assert invention("one two one two one two one two one two my title", pages) == pytest.approx(1 / 13)  # "page"
    assert invention("one two my title", pages[:1], [page("", "", "Page 7")]) == 0
    assert invention("one two my title", [page("one two", "Another Title")]) == pytest.approx(1 / 4)


def test_fields_belong_where_the_reference_shows_them() -> None:
    fields = {"project_title": "Hill Farms", "department": "CSE", "academic_year": "2025-26", "starting_page": 4}
    reference = [page("Hill Farms"), *(page("x", "Hill Farms", f"CSE Page {n} 2025-26") for n in (5, 6, 7))]
    assert field_presence(fields, reference, reference) == dict.fromkeys(fields, 1.0)
    wrong_year = [reference[0], *(page("x", "Hill Farms", f"CSE Page {n} 2024-25") for n in (5, 6, 7))]
    assert field_presence(fields, wrong_year, reference)["academic_year"] == 0
    no_header = [reference[0], *(page("x", "", f"CSE Page {n} 2025-26") for n in (5, 6, 7))]
    assert field_presence(fields, no_header, reference)["project_title"] == 0.5  # still in the body
    misplaced = [reference[0], *(page("CSE x", "Hill Farms", f"Page {n} 2025-26") for n in (5, 6, 7))]
    assert field_presence(fields, misplaced, reference)["department"] == 0
    one_page_without = [*reference[:3], page("x")]
    assert field_presence(fields, one_page_without, reference)["department"] == pytest.approx(2 / 3)
    shifted = [reference[0], *(page("x", "Hill Farms", f"CSE Page {n} 2025-26") for n in (6, 7, 8))]
    assert field_presence(fields, shifted, reference)["starting_page"] == 0
    shorter = reference[:3]
    assert field_presence(fields, shorter, reference)["starting_page"] == pytest.approx(2 / 3)
    assert field_presence(fields, [], reference) == dict.fromkeys(fields, 0.0)
    assert field_presence({"secret": "Never shown"}, reference, reference) == {}
    unnumbered = [page("x", "2025-26"), page("y", "2025-26")]
    assert field_presence(fields, unnumbered, unnumbered) == {"academic_year": 1.0}


def test_without_a_reference_a_field_may_be_anywhere() -> None:
    fields = {"title": "Hill Farms", "year": "2025-26", "first_page": 3, "empty": ""}
    pages = [page("About Hill Farms", "", ""), page("x", "", "4")]
    assert field_presence(fields, pages) == {"title": 1.0, "year": 0.0, "first_page": 1.0}
    assert field_presence({"first_page": 3}, [page("x", "", "9")]) == {"first_page": 0.0}
    assert field_presence({"title": "Farm"}, [page("Hill Farms")]) == {"title": 0.0}  # whole words


def test_edit_similarity_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.text import edit_distance

    rng = random.Random(0)
    for _ in range(20):
        a, b = ("".join(rng.choices("abc #[]", k=rng.randrange(1, 40))) for _ in range(2))
        distance = float(edit_distance([a], [b], reduction="sum"))
        assert edit_similarity(a, b) == pytest.approx(1 - distance / max(len(a), len(b)))
