"""Folders of shards: what is taken over, what is made anew, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from typst_lit.data.sources import FileSource, Row
from typst_lit.errors import UserError
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.inference.generator import GenerationFailure
from typst_lit.inference.shards import Shard, ShardFolder

MAKING = {"model": "a", "seed": 0}


class Echo:
    """Answers as a Generator does, in reverse order, with an error where a record says so."""

    def results(
        self, records: Sequence[Any], adapter: str | None = None
    ) -> Iterator[GeneratedDocument | GenerationFailure]:
        for place, record in reversed([*enumerate(records)]):
            if record == "fails":
                yield GenerationFailure(place, RuntimeError("no"))
            elif not isinstance(record, str):
                yield GenerationFailure(place, UserError("is no text"))
            else:
                yield GeneratedDocument({"text": record}, record.upper(), "stop", index=place)


def job(path: Path, rows: Sequence[Row], making: dict[str, Any] = MAKING, overwrite: bool = False) -> list[int]:
    """Makes all that is missing, and returns which shards that was."""
    folder = ShardFolder(path, 3)
    folder.begin(making, overwrite)
    _, missing = folder.lay_out(rows)
    for number in missing:
        folder.add(folder.make(number, Echo(), None))  # type: ignore[arg-type]
    folder.save()
    return missing


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(path.glob("part-*.jsonl")) for line in file.read_bytes().splitlines()]


ROWS = [Row(f"file, line {place}", value) for place, value in enumerate("abcdefgh")]


def test_every_record_has_one_result_in_its_place(tmp_path) -> None:
    rows = [*ROWS[:4], Row("file, line 4", "fails"), Row("file, line 5", error="is cut off"), *ROWS[6:]]
    assert job(tmp_path, rows) == [0, 1, 2]
    made = lines(tmp_path)
    assert [each["record"] for each in made] == list(range(8))
    assert [each["origin"] for each in made] == [row.origin for row in rows]
    assert made[0]["generated_output"] == "A"
    assert made[4] == {"record": 4, "origin": "file, line 4", "input": "fails", "error": "RuntimeError: no"}
    assert made[5] == {"record": 5, "origin": "file, line 5", "input": None, "error": "is cut off"}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["complete"] and manifest["records"] == 8 and manifest["failed"] == 2
    assert [each["first"] for each in manifest["shards"]] == [0, 3, 6]
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    "value", [{"d": date(2025, 1, 1)}, {"n": float("nan")}, {"b": b"\xff"}, {"half a pair": "\ud800"}, 3]
)
def test_a_record_that_json_can_not_hold_does_not_break_its_shard(tmp_path, value) -> None:
    job(tmp_path, [Row("a", value), Row("b", "b")])
    first, second = lines(tmp_path)
    assert first["error"] == "is no text" and second["generated_output"] == "B"


def test_where_nothing_succeeds_there_is_no_shard(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="no"):
        job(tmp_path, [Row("a", "fails"), Row("b", "fails"), Row("c", error="is cut off")])
    assert not list(tmp_path.glob("part-*.jsonl"))


def test_only_what_is_missing_or_damaged_is_made_again(tmp_path) -> None:
    job(tmp_path, ROWS)
    before = lines(tmp_path)
    assert job(tmp_path, ROWS) == []
    (tmp_path / "part-00001.jsonl").unlink()
    assert job(tmp_path, ROWS) == [1]
    damaged = tmp_path / "part-00002.jsonl"
    body = bytearray(damaged.read_bytes())
    body[20] ^= 1
    damaged.write_bytes(body)
    assert job(tmp_path, ROWS) == [2]
    (tmp_path / "part-00000.jsonl").write_bytes(b"")
    (tmp_path / ".part-00000.jsonl-12").write_bytes(b"half")
    assert job(tmp_path, ROWS) == [0]
    assert lines(tmp_path) == before and not list(tmp_path.glob(".part*"))


def test_a_shard_that_the_manifest_does_not_name_is_made_again(tmp_path) -> None:
    job(tmp_path, ROWS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "shards": manifest["shards"][:1]}))
    assert job(tmp_path, ROWS) == [1, 2]


def test_other_settings_and_strangers_are_refused(tmp_path) -> None:
    job(tmp_path, ROWS)
    before = lines(tmp_path)
    with pytest.raises(UserError, match=r"different settings \(seed\).*--overwrite"):
        job(tmp_path, ROWS, {**MAKING, "seed": 1})
    with pytest.raises(UserError, match=r"different settings \(shard_size\)"):
        ShardFolder(tmp_path, 4).begin(MAKING)
    manifest = tmp_path / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole[:50])
    with pytest.raises(UserError, match=r"manifest.json: is damaged"):
        job(tmp_path, ROWS)
    manifest.unlink()
    with pytest.raises(UserError, match=r"holds shards and no manifest.json"):
        job(tmp_path, ROWS)
    assert lines(tmp_path) == before
    assert job(tmp_path, ROWS[:4], {**MAKING, "seed": 1}, overwrite=True) == [0, 1]
    assert [each["record"] for each in lines(tmp_path)] == [0, 1, 2, 3]  # nothing of the longer job is left
    with pytest.raises(UserError, match="--shard-size"):
        ShardFolder(tmp_path, 0)


def test_places_are_those_of_the_source_in_every_form(tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('"a"\n\n"b"\nnot json\n"c"\n')
    (folder / "b.json").write_text('["d", "e"]')
    pyarrow.parquet.write_table(pyarrow.table({"x": ["f", "g"]}), folder / "c.parquet")
    rows = list(FileSource(str(folder)).rows())
    job(tmp_path / "out", rows)
    assert [each["origin"] for each in lines(tmp_path / "out")] == [row.origin for row in rows] and len(rows) == 8


def test_a_shard_survives_the_manifest(tmp_path) -> None:
    shard = Shard("part-00000.jsonl", 0, 3, 1, 0, 10, "00")
    folder = ShardFolder(tmp_path, 3)
    folder.begin(MAKING)
    folder.add(shard)
    folder.save()
    (found,) = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert Shard(**found) == shard and not json.loads((tmp_path / "manifest.json").read_text())["complete"]
