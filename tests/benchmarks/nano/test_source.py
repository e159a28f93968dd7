from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from benchmarks.nano.chapters import copy_task, parse_chapter, random_writer
from benchmarks.nano.source import SyntheticReports, render
from benchmarks.nano.styles import DEPARTMENTS, HOUSE_STYLE, department_style
from benchmarks.nano.words import WORD_LISTS, is_held_out, third_person
from typst_lit.data.prompts import ReportPrompt
from typst_lit.data.records import parse_record
from typst_lit.metrics.documents import ContentFidelity, Document
from typst_lit.metrics.house_marks import HOUSE_MARKS, HouseMarks
from typst_lit.typesetting.typesetter import Typesetter

COUNT = 200


@pytest.fixture(
    scope="module",
    params=[{}, {"hard_fraction": 0.8, "brief_fraction": 0.6}, {"random_style_fraction": 1.0}],
    ids=["plain", "hard", "random styles"],
)
def options(request: pytest.FixtureRequest) -> dict:
    return {"copy_fraction": 0.05, **request.param}


@pytest.fixture(scope="module")
def pairs(options) -> list[dict]:
    return [row.value for row in SyntheticReports(COUNT, seed=7, **options).rows()]


def shipped_samples() -> list[dict]:
    directory = files("typst_lit") / "data/samples"
    return [
        pair for name in ("reports", "held_out") for pair in json.loads((directory / f"{name}.json").read_text("utf-8"))
    ]


def test_every_document_compiles_and_shows_all_of_its_record(pairs) -> None:
    with Typesetter() as typesetter:
        for sources in (
            [pair["output"] for pair in pairs],
            [HOUSE_STYLE.render(parse_chapter(p["input"])) for p in pairs],
        ):
            results = list(typesetter.compile_many(sources))
            assert [result.error for result in results] == [""] * COUNT
            metric = ContentFidelity()
            for pair, result in zip(pairs, results, strict=True):
                if pair["input"]["project_title"] != "Copy":
                    metric.update([Document("", pair["input"], "contents_txt", "", result)])
            assert float(metric.compute()) > 0.999


def test_records_are_valid_and_parsing_them_restores_the_chapter(pairs) -> None:
    for pair in pairs:
        assert parse_record(pair, ReportPrompt.fields, needs_reference=True).errors == ()
        chapter = parse_chapter(pair["input"])
        assert chapter.record == pair["input"] and render(chapter) == pair["output"]


def test_a_pair_depends_on_seed_and_index_alone(pairs, options) -> None:
    source = SyntheticReports(10, seed=7, **options)
    assert [source.pair(index) for index in (3, 150)] == [pairs[3], pairs[150]]
    assert SyntheticReports(10, seed=8).pair(3) != SyntheticReports(10, seed=7).pair(3)
    assert source.fingerprint() != SyntheticReports(10, seed=7, **{**options, "copy_fraction": 0.06}).fingerprint()


def test_held_out_words_do_not_occur_in_training_data() -> None:
    assert not any(map(is_held_out, ("table", "Figure", "left")))  # words of Typst code
    assert 0.05 < sum(map(is_held_out, WORD_LISTS["nouns"])) / len(WORD_LISTS["nouns"]) < 0.15
    for unseen, hard in ((False, 0.0), (False, 1.0), (True, 0.0)):
        source = SyntheticReports(50, seed=1, unseen=unseen, hard_fraction=hard, brief_fraction=hard / 2)
        nouns = set(WORD_LISTS["nouns"])
        words = {word for i in range(50) for word in re.split(r"[\s.,;-]", source.pair(i)["input"]["contents_txt"])}
        assert {is_held_out(word) for word in words & nouns} == {unseen}


def test_styles_differ_and_none_has_a_mark_of_the_house_style() -> None:
    chapter = parse_chapter(SyntheticReports(1, seed=3).pair(0)["input"])
    sources = {department: department_style(department).render(chapter) for department in DEPARTMENTS}
    assert len(set(sources.values())) > 40
    assert not any(mark in source for mark in HOUSE_MARKS for source in sources.values())
    random_styles = [
        pair["output"] for pair in (SyntheticReports(1, 4, random_style_fraction=1.0).pair(i) for i in range(300))
    ]
    assert len(set(random_styles)) == 300
    assert not any(mark in source for mark in (*HOUSE_MARKS, "maroon") for source in random_styles)
    assert all(mark in HOUSE_STYLE.render(chapter) for mark in HOUSE_MARKS)


def test_the_document_of_a_copy_task_is_its_text() -> None:
    chapter = copy_task(random_writer(0, 0, unseen=False))
    assert render(chapter).strip().replace("\\", "") == chapter.record["contents_txt"].split("\n\n")[2]


def test_the_shipped_samples_are_in_the_house_style() -> None:
    samples = shipped_samples()
    assert len(samples) == 60 and len({pair["input"]["project_title"] for pair in samples}) == 12
    with Typesetter() as typesetter:
        results = list(typesetter.compile_many(pair["output"] for pair in samples))
    for pair, result in zip(samples, results, strict=True):
        assert HOUSE_STYLE.render(parse_chapter(pair["input"])) == pair["output"]
        document = Document("", pair["input"], "contents_txt", pair["output"], result)
        assert HouseMarks().score(document) == 1 and ContentFidelity().score(document) == 1


@pytest.mark.parametrize(
    ("verb", "expected"), [("walk", "walks"), ("carry", "carries"), ("stay", "stays"), ("mix", "mixes"), ("go", "goes")]
)
def test_third_person(verb, expected) -> None:
    assert third_person(verb) == expected
