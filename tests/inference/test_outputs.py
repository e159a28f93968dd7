"""Results on disk."""

from __future__ import annotations

import json

import pytest

from typst_lit.errors import UserError
from typst_lit.inference.outputs import RecordResults, ResultFile

RECORDS = [{"title": title} for title in "ABAC"]


def test_a_result_file_is_valid_after_every_write_and_readable_when_cut_off(tmp_path) -> None:
    file = ResultFile(tmp_path / "list.json")
    assert file.read() == []
    file.write([])
    items = [{"text": "ünïcode ] } , \\n"}, {"text": "x" * 5000}, {"n": [1, 2]}]
    for count, item in enumerate(items, start=1):
        file.append([item])
        assert json.loads(file.path.read_text("utf-8")) == items[:count]
    content = file.path.read_bytes()
    for cut in range(1, len(content), 397):
        file.path.write_bytes(content[:cut])
        kept = file.read()
        assert kept == items[: len(kept)]
    file.path.write_bytes(content[:-10])
    assert file.read() == items[:2]
    file.write(file.read())
    file.append([items[2]])
    assert json.loads(file.path.read_text("utf-8")) == items


def result(title: str) -> dict[str, object]:
    return {"input": {"title": title}, "generated_output": f"= {title}"}


def test_results_are_resumed_by_record_and_end_in_the_order_of_the_records(tmp_path) -> None:
    path = tmp_path / "results.json"
    results = RecordResults(path, RECORDS, {"seed": 0})
    assert results.missing == [0, 1, 3]  # a record that occurs again has one result
    results.add(3, result("C"))
    results.add(0, result("A"))
    resumed = RecordResults(path, RECORDS, {"seed": 0})
    assert resumed.missing == [1]
    resumed.add(1, result("B"))
    assert resumed.finish() == json.loads(path.read_text("utf-8")) == [result(title) for title in "ABAC"]
    assert RecordResults(path, RECORDS, {"seed": 0}).missing == []


def test_other_records_and_other_settings_are_rejected_unless_overwritten(tmp_path) -> None:
    path = tmp_path / "results.json"
    RecordResults(path, RECORDS, {"seed": 0}).add(0, result("A"))
    with pytest.raises(UserError, match=r"different settings \(seed\)"):
        RecordResults(path, RECORDS, {"seed": 1})
    with pytest.raises(UserError, match="other records"):
        RecordResults(path, RECORDS[1:2], {"seed": 0})
    assert RecordResults(path, RECORDS[1:2], {"seed": 1}, overwrite=True).missing == [0]
