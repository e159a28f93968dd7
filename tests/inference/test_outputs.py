"""Results on disk."""

from __future__ import annotations

import json
import os

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
    with RecordResults(path, RECORDS, {"seed": 0}) as results:
        assert results.missing == [0, 1, 3]  # a record that occurs again has one result
        results.start()
        results.add(3, result("C"))
        results.add(0, result("A"))
    with RecordResults(path, RECORDS, {"seed": 0}) as resumed:
        assert resumed.missing == [1]
        resumed.start()
        resumed.add(1, result("B"))
        assert resumed.finish() == json.loads(path.read_text("utf-8")) == [result(title) for title in "ABAC"]
    with RecordResults(path, RECORDS, {"seed": 0}) as complete:
        assert complete.missing == []


def test_other_records_and_other_settings_are_rejected_unless_overwritten(tmp_path) -> None:
    path = tmp_path / "results.json"
    with RecordResults(path, RECORDS, {"seed": 0}) as results:
        results.start()
        results.add(0, result("A"))
    with pytest.raises(UserError, match=r"different settings \(seed\)"):
        RecordResults(path, RECORDS, {"seed": 1})
    with pytest.raises(UserError, match="other records"):
        RecordResults(path, RECORDS[1:2], {"seed": 0})
    with RecordResults(path, RECORDS[1:2], {"seed": 1}, overwrite=True) as overwritten:
        assert overwritten.missing == [0]
    assert json.loads(path.read_text("utf-8")) == [result("A")]  # until `start`


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_provenance_is_an_error(tmp_path, content) -> None:
    path = tmp_path / "results.json"
    with RecordResults(path, RECORDS, {"seed": 0}) as results:
        results.start()
        results.add(0, result("A"))
    path.with_suffix(".run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"results\.run\.json: is damaged .*`overwrite=true`"):
        RecordResults(path, RECORDS, {"seed": 0})
    assert json.loads(path.read_text("utf-8")) == [result("A")]
    with RecordResults(path, RECORDS, {"seed": 0}, overwrite=True) as again:
        again.start()
    with RecordResults(path, RECORDS, {"seed": 0}) as resumed:
        assert resumed.missing == [0, 1, 3]


def test_files_that_this_program_did_not_write_are_replaced_only_on_request(tmp_path) -> None:
    path = tmp_path / "results.json"
    for name in ("results.json", "results.run.json"):
        (tmp_path / name).write_text('["mine"]')
        with pytest.raises(UserError, match=rf"{name}: already exists.*`overwrite=true`"):
            RecordResults(path, RECORDS, {"seed": 0})
        assert (tmp_path / name).read_text() == '["mine"]'
        (tmp_path / name).unlink()
    precious = tmp_path / "precious.json"
    precious.write_text("[]")
    path.symlink_to(precious)
    with pytest.raises(UserError, match=r"already exists"):
        RecordResults(path, RECORDS, {"seed": 0})
    with RecordResults(path, RECORDS, {"seed": 0}, overwrite=True) as results:
        results.start()
        results.add(0, result("A"))
    assert not path.is_symlink() and precious.read_text() == "[]"
    with pytest.raises(UserError, match="is not a regular file"):
        RecordResults(tmp_path, RECORDS, {"seed": 0})


def test_results_of_a_version_without_manifests_are_resumed(tmp_path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([result("A")]))
    path.with_suffix(".run.json").write_text('{"seed": 0}')
    with RecordResults(path, RECORDS, {"seed": 0}) as results:
        assert results.missing == [1, 3]
        results.start()


def test_one_process_writes_and_a_second_is_refused(tmp_path) -> None:
    path = tmp_path / "results.json"
    with RecordResults(path, RECORDS, {"seed": 0}) as first:
        first.start()
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is writing it"):
            RecordResults(path, RECORDS, {"seed": 0})
        first.add(0, result("A"))
    with pytest.raises(UserError, match="other records"):
        RecordResults(path, RECORDS[1:2], {"seed": 0})
    with RecordResults(path, RECORDS, {"seed": 0}) as second:  # no error leaves a lock
        assert second.missing == [1, 3]
