from __future__ import annotations

import json

import pytest

from tests.conftest import SAMPLES


@pytest.fixture
def results(tmp_path, pairs):
    """Results for the first four samples, in reverse order: two good ones, one that does not compile, one cut short."""
    sources = [pair["output"] for pair in pairs[:4]]
    sources[1] = sources[1].replace("#set page", "#sett page", 1)
    sources[2] = sources[2][: len(sources[2]) // 2].rsplit("\n\n", 1)[0]
    items = [
        {"input": pair["input"], "generated_output": source} for pair, source in zip(pairs[:4], sources, strict=True)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(items[::-1]))
    return path


def test_results_are_scored_against_their_references(results, run) -> None:
    result = run("score", results, "--references", SAMPLES)
    assert result.status == 0, result.err
    scores = result.out.split("\n\n")[0].splitlines()
    printed = {name: float(value) for name, value in map(str.split, scores)}
    report = json.loads((results.parent / "report.json").read_text())
    assert printed["compile_rate"] == report["scores"]["compile_rate"] == 0.75
    assert 0.5 < printed["fidelity"] < 0.99 and 0 < printed["page_similarity"] < 1
    assert [entry["compiled"] for entry in report["documents"]] == [False, True, True, True]  # the worst first
    worst, second, *good = report["documents"]
    assert any("unknown variable: sett" in diagnostic["message"] for diagnostic in worst["diagnostics"])
    assert second["scores"]["fidelity"] < 0.9 and all(entry["scores"]["edit_similarity"] == 1 for entry in good)
    assert good[0]["field_scores"]["project_title"] == 1 and good[0]["reference_pages"] == good[0]["pages"]
    page = (results.parent / "report.html").read_text()
    assert page.count("<details class=") == 4 and "data:image/webp" in page and "http" not in page.split("<body>")[1]
    assert "&lt;" in page or "<script>alert" not in page


def test_repairs_in_results_of_generate_count(results, run) -> None:
    items = json.loads(results.read_text())
    for item in items:
        item |= {"repairs": [], "finish_reason": "stop"}
    items[1]["repairs"] = ["line 1, column 1: escaped a stray #"]
    results.write_text(json.dumps(items))
    result = run("score", results)
    assert "compile_rate               0.5000\n" in result.out, result.out
    assert "compile_rate_after_repair  0.7500\n" in result.out
    assert '<li class="warning">Repaired: line 1, column 1' in (results.parent / "report.html").read_text()


def test_items_of_other_tools_and_directories_of_typst_files(tmp_path, run, pairs) -> None:
    lines = tmp_path / "other.jsonl"
    lines.write_text("".join(json.dumps({"typst_code": pair["output"]}) + "\n" for pair in pairs))
    unknown = run("score", lines, "--references", SAMPLES)
    assert unknown.status == 1 and "other.jsonl, line 1" in unknown.err and "--field" in unknown.err
    named = run("score", lines, "--references", SAMPLES, "--field", "typst_code", "--output_dir", tmp_path / "out")
    assert named.status == 0 and "compile_rate      1.0000" in named.out and (tmp_path / "out/report.html").is_file()
    directory = tmp_path / "typ"
    directory.mkdir()
    for index, pair in enumerate(pairs):
        (directory / f"{index:04d}.typ").write_text(pair["output"])
    assert "edit_similarity   1.0000" in run("score", directory, "--references", SAMPLES).out


def test_without_references_the_record_is_enough(results, run) -> None:
    result = run("score", results)
    assert result.status == 0 and "compile_rate      0.7500" in result.out and "chrf" not in result.out
    assert "field_presence" in result.out


def test_unmatched_documents_are_named(tmp_path, results, run, pairs) -> None:
    other = tmp_path / "one.json"
    other.write_text(json.dumps(pairs[5:6]))
    assert "has no pair for 4 of 4 documents" in run("score", results, "--references", other).err
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(["= A", "= B"]))
    assert "2 documents, but 1 pair in" in run("score", bare, "--references", other).err
    assert "--references" in run("score", bare).err
    bare.write_text(json.dumps([{"input": {"department": 3}, "output": "= A"}, 7]))
    assert "an item must be text" in run("score", bare).err and "field 'department'" in run("score", bare).err
    assert run("score", tmp_path / "nothing.json").status == 1


def test_no_input_is_overwritten_and_no_document_gets_the_reference_of_another(tmp_path, results, run, pairs) -> None:
    report = tmp_path / "report.json"
    report.write_text(results.read_text())
    refused = run("score", report, "--references", SAMPLES)
    assert refused.status == 1 and "--output-dir" in refused.err and report.read_text() == results.read_text()
    refused = run("score", results, "--references", SAMPLES)  # the report of another tool
    assert refused.status == 1 and "--overwrite" in refused.err and "--output-dir" in refused.err
    assert report.read_text() == results.read_text()
    report.unlink()
    items = [{"input": pair["input"], "output": pair["output"]} for pair in pairs[::-1]]
    del items[0]["input"]
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps(items))
    result = run("score", mixed, "--references", SAMPLES)
    assert result.status == 1 and "was generated from another record" in result.err


def test_a_reference_that_does_not_compile_is_logged(tmp_path, run, pairs) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([{**pairs[0], "output": "#panic()"}]))
    (tmp_path / "results.json").write_text(json.dumps([pairs[0]]))
    result = run("score", tmp_path / "results.json", "--references", tmp_path / "pairs.json")
    assert result.status == 0 and "does not compile" in result.err and "page_similarity" not in result.out
    assert "The reference does not compile" in (tmp_path / "report.html").read_text()
