from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from benchmarks.nano.chapters import copying_task, parse_chapter, random_writer
from benchmarks.nano.source import SyntheticReports, render
from benchmarks.nano.styles import DEPARTMENTS, HOUSE, HOUSE_MARKS, style_of
from benchmarks.nano.words import LISTS, is_kept_out, third_person
from typst_lit.data.prompts import ReportPrompt
from typst_lit.data.records import parse_record
from typst_lit.metrics.documents import ContentFidelity, Document
from typst_lit.metrics.house_marks import HouseMarks
from typst_lit.typesetting.typesetter import Typesetter

COUNT = 200


@pytest.fixture(
    scope="module", params=[{}, {"hard": 0.8, "brief": 0.6}, {"guests": 1.0}], ids=["plain", "hard", "guests"]
)
def options(request: pytest.FixtureRequest) -> dict:
    return {"copying": 0.05, **request.param}


@pytest.fixture(scope="module")
def made(options) -> list[dict]:
    return [row.value for row in SyntheticReports(COUNT, seed=7, **options).rows()]


def shipped_samples() -> list[dict]:
    folder = files("typst_lit") / "data/samples"
    return [
        pair for name in ("reports", "held_out") for pair in json.loads((folder / f"{name}.json").read_text("utf-8"))
    ]


def test_every_document_compiles_and_shows_its_whole_record(made) -> None:
    with Typesetter() as typesetter:
        for sources in ([pair["output"] for pair in made], [HOUSE.render(parse_chapter(p["input"])) for p in made]):
            results = list(typesetter.compile_many(sources))
            assert [result.reason for result in results] == [""] * COUNT
            metric = ContentFidelity()
            for pair, result in zip(made, results, strict=True):
                if pair["input"]["project_title"] != "Copy":
                    metric.update([Document("", pair["input"], "contents_txt", "", result)])
            assert float(metric.compute()) > 0.999


def test_records_are_valid_and_read_back_as_they_were_made(made) -> None:
    for pair in made:
        assert parse_record(pair, ReportPrompt.fields, needs_reference=True).errors == ()
        chapter = parse_chapter(pair["input"])
        assert chapter.record == pair["input"] and render(chapter) == pair["output"]


def test_a_pair_is_a_function_of_seed_and_place(made, options) -> None:
    source = SyntheticReports(10, seed=7, **options)
    assert [source.pair(index) for index in (3, 150)] == [made[3], made[150]]
    assert SyntheticReports(10, seed=8).pair(3) != SyntheticReports(10, seed=7).pair(3)
    assert source.fingerprint() != SyntheticReports(10, seed=7, **{**options, "copying": 0.06}).fingerprint()


def test_kept_out_words_are_kept_out() -> None:
    assert not any(map(is_kept_out, ("table", "Figure", "left")))  # Typst's code has them
    assert 0.05 < sum(map(is_kept_out, LISTS["nouns"])) / len(LISTS["nouns"]) < 0.15
    for unseen, hard in ((False, 0.0), (False, 1.0), (True, 0.0)):
        source = SyntheticReports(50, seed=1, unseen=unseen, hard=hard, brief=hard / 2)
        nouns = set(LISTS["nouns"])
        words = {word for i in range(50) for word in re.split(r"[\s.,;-]", source.pair(i)["input"]["contents_txt"])}
        assert {is_kept_out(word) for word in words & nouns} == {unseen}


def test_styles_differ_and_the_house_style_is_none_of_them() -> None:
    chapter = parse_chapter(SyntheticReports(1, seed=3).pair(0)["input"])
    sources = {department: style_of(department).render(chapter) for department in DEPARTMENTS}
    assert len(set(sources.values())) > 40
    assert not any(mark in source for mark in HOUSE_MARKS for source in sources.values())
    guests = [pair["output"] for pair in (SyntheticReports(1, 4, guests=1.0).pair(i) for i in range(300))]
    assert len(set(guests)) == 300
    assert not any(mark in source for mark in (*HOUSE_MARKS, "maroon") for source in guests)
    assert all(mark in HOUSE.render(chapter) for mark in HOUSE_MARKS)


def test_copying_tasks_are_their_own_text() -> None:
    chapter = copying_task(random_writer(0, 0, unseen=False))
    assert render(chapter).strip().replace("\\", "") == chapter.record["contents_txt"].split("\n\n")[2]


def test_the_shipped_samples_are_in_the_house_style() -> None:
    samples = shipped_samples()
    assert len(samples) == 60 and len({pair["input"]["project_title"] for pair in samples}) == 12
    with Typesetter() as typesetter:
        results = list(typesetter.compile_many(pair["output"] for pair in samples))
    for pair, result in zip(samples, results, strict=True):
        assert HOUSE.render(parse_chapter(pair["input"])) == pair["output"]
        document = Document("", pair["input"], "contents_txt", pair["output"], result)
        assert HouseMarks().score(document) == 1 and ContentFidelity().score(document) == 1


@pytest.mark.parametrize(
    ("verb", "expected"), [("walk", "walks"), ("carry", "carries"), ("stay", "stays"), ("mix", "mixes"), ("go", "goes")]
)
def test_third_person(verb, expected) -> None:
    assert third_person(verb) == expected
