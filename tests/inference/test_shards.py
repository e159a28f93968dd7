"""Directories of shards: what is adopted, what is generated again, what is refused."""

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
from typst_lit.inference.shards import Shard, ShardDirectory
from typst_lit.manifest import MANIFEST_NAME

PROVENANCE = {"model": "a", "seed": 0}


class FakeGenerator:
    """Has the results of a Generator, in reverse order, and an error where the record says so."""

    def results(
        self, records: Sequence[Any], adapter: str | None = None
    ) -> Iterator[GeneratedDocument | GenerationFailure]:
        for index, record in reversed([*enumerate(records)]):
            if record == "fails":
                yield GenerationFailure(index, RuntimeError("no"))
            elif not isinstance(record, str):
                yield GenerationFailure(index, UserError("is not a text"))
            else:
                yield GeneratedDocument({"text": record}, record.upper(), "stop", index=index)


def run_job(
    path: Path, rows: Sequence[Row], provenance: dict[str, Any] = PROVENANCE, overwrite: bool = False
) -> list[int]:
    """Generates the missing shards, and returns their indices."""
    directory = ShardDirectory(path, 3)
    directory.start(provenance, overwrite)
    _, missing = directory.split(rows)
    for index in missing:
        directory.add(directory.generate(index, FakeGenerator()))  # type: ignore[arg-type]
    directory.write_manifest()
    return missing


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(path.glob("part-*.jsonl")) for line in file.read_bytes().splitlines()]


def read_manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


ROWS = [Row(f"file, line {number}", value) for number, value in enumerate("abcdefgh")]


def test_every_record_has_one_result_in_order(tmp_path) -> None:
    rows = [*ROWS[:4], Row("file, line 4", "fails"), Row("file, line 5", error="is cut off"), *ROWS[6:]]
    assert run_job(tmp_path, rows) == [0, 1, 2]
    lines = read_lines(tmp_path)
    assert [line["record"] for line in lines] == list(range(8))
    assert [line["origin"] for line in lines] == [row.origin for row in rows]
    assert lines[0]["generated_output"] == "A"
    assert lines[4] == {"record": 4, "origin": "file, line 4", "input": "fails", "error": "RuntimeError: no"}
    assert lines[5] == {"record": 5, "origin": "file, line 5", "input": None, "error": "is cut off"}
    manifest = read_manifest(tmp_path)
    assert manifest["complete"] and manifest["records"] == 8 and manifest["failed"] == 2
    assert [shard["first"] for shard in manifest["shards"]] == [0, 3, 6]
    assert not (tmp_path / ".typst-lit-records").exists()


@pytest.mark.parametrize(
    "value", [{"d": date(2025, 1, 1)}, {"n": float("nan")}, {"b": b"\xff"}, {"lone surrogate": "\ud800"}, 3]
)
def test_record_that_json_cannot_represent_does_not_break_its_shard(tmp_path, value) -> None:
    run_job(tmp_path, [Row("a", value), Row("b", "b")])
    first, second = read_lines(tmp_path)
    assert first["error"] == "is not a text" and second["generated_output"] == "B"


def test_no_shard_is_written_when_all_its_records_fail(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="no"):
        run_job(tmp_path, [Row("a", "fails"), Row("b", "fails"), Row("c", error="is cut off")])
    assert not list(tmp_path.glob("part-*.jsonl"))


def test_only_missing_or_damaged_shards_are_generated_again(tmp_path) -> None:
    run_job(tmp_path, ROWS)
    before = read_lines(tmp_path)
    assert run_job(tmp_path, ROWS) == []
    (tmp_path / "part-00001.jsonl").unlink()
    assert run_job(tmp_path, ROWS) == [1]
    damaged = tmp_path / "part-00002.jsonl"
    body = bytearray(damaged.read_bytes())
    body[20] ^= 1
    damaged.write_bytes(body)
    assert run_job(tmp_path, ROWS) == [2]
    (tmp_path / "part-00000.jsonl").write_bytes(b"")
    assert run_job(tmp_path, ROWS) == [0]
    assert read_lines(tmp_path) == before


def test_shard_that_the_manifest_does_not_list_is_generated_again(tmp_path) -> None:
    run_job(tmp_path, ROWS)
    manifest = read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "shards": manifest["shards"][:1]}))
    assert run_job(tmp_path, ROWS) == [1, 2]


def test_results_with_different_settings_and_unlisted_shards_are_refused(tmp_path) -> None:
    run_job(tmp_path, ROWS)
    before = read_lines(tmp_path)
    with pytest.raises(UserError, match=r"different settings \(seed\).*`overwrite=true`"):
        run_job(tmp_path, ROWS, {**PROVENANCE, "seed": 1})
    with pytest.raises(UserError, match=r"different settings \(shard_size\)"):
        ShardDirectory(tmp_path, 4).start(PROVENANCE)
    manifest = tmp_path / "manifest.json"
    intact = manifest.read_text()
    manifest.write_text(intact[:50])
    with pytest.raises(UserError, match=r"manifest.json: is damaged"):
        run_job(tmp_path, ROWS)
    manifest.unlink()
    with pytest.raises(UserError, match=r"contains shards but no manifest.json"):
        run_job(tmp_path, ROWS)
    assert read_lines(tmp_path) == before
    assert run_job(tmp_path, ROWS[:4], {**PROVENANCE, "seed": 1}, overwrite=True) == [0, 1]
    assert [line["record"] for line in read_lines(tmp_path)] == [0, 1, 2, 3]  # nothing of the longer job is left
    with pytest.raises(UserError, match="`shard_size`: must be 1 or more, not 0"):
        ShardDirectory(tmp_path, 0)


def test_origins_are_those_of_the_source_in_every_format(tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text('"a"\n\n"b"\nnot json\n"c"\n')
    (source / "b.json").write_text('["d", "e"]')
    pyarrow.parquet.write_table(pyarrow.table({"x": ["f", "g"]}), source / "c.parquet")
    rows = list(FileSource(str(source)).rows())
    run_job(tmp_path / "out", rows)
    assert [line["origin"] for line in read_lines(tmp_path / "out")] == [row.origin for row in rows] and len(rows) == 8


def test_shard_is_read_back_from_the_manifest(tmp_path) -> None:
    shard = Shard("part-00000.jsonl", 0, 3, 1, 0, 1, 1, 10, "00")
    directory = ShardDirectory(tmp_path, 3)
    directory.start(PROVENANCE)
    directory.add(shard)
    directory.write_manifest()
    manifest = read_manifest(tmp_path)
    assert [Shard(**fields) for fields in manifest["shards"]] == [shard] and not manifest["complete"]


def test_shards_of_earlier_versions_have_no_counts_of_clean_documents(tmp_path) -> None:
    directory = tmp_path / "out"
    run_job(directory, ROWS)
    before = read_lines(directory)
    manifest = read_manifest(directory)
    assert manifest["clean"] == manifest["not_clean"] == 0
    for value in (manifest, *manifest["shards"]):
        del value["clean"], value["not_clean"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert run_job(directory, ROWS) == []  # adopted, not generated again
    assert read_lines(directory) == before and read_manifest(directory)["clean"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../secret"}, {"name": "part-00001.jsonl"}, {"name": 3}, {"first": "0"}, {"first": 1}, {"first": -3},
        {"records": None}, {"unknown": 1},
    ],
)  # fmt: skip
def test_hostile_manifest_is_refused_and_names_no_other_files(tmp_path, change) -> None:
    directory = tmp_path / "out"
    run_job(directory, ROWS)
    secret = tmp_path / "secret"
    secret.write_bytes((directory / "part-00000.jsonl").read_bytes())
    manifest = read_manifest(directory)
    manifest["shards"][0] |= change
    (directory / "manifest.json").write_text(json.dumps(manifest))
    before = read_lines(directory)
    with pytest.raises(UserError, match=r"manifest\.json: is damaged .*`overwrite=true`"):
        run_job(directory, ROWS)
    assert read_lines(directory) == before and secret.exists()
    assert run_job(directory, ROWS, overwrite=True) == [0, 1, 2]
    for shard in (3, None, "x", [], {}):
        (directory / "manifest.json").write_text(json.dumps({**read_manifest(directory), "shards": [shard]}))
        with pytest.raises(UserError, match=r"manifest\.json: is damaged"):
            run_job(directory, ROWS)
        run_job(directory, ROWS, overwrite=True)
    (directory / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=r"manifest\.json: is damaged"):
        run_job(directory, ROWS)


def test_files_of_the_user_are_spared_and_shards_of_earlier_versions_adopted(tmp_path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "mine.json").write_text("mine")
    with pytest.raises(UserError, match=r"contains 1 file that this program did not write:\n  records"):
        run_job(tmp_path, ROWS)
    (tmp_path / "records").rename(tmp_path / "mine")
    directory = tmp_path / "out"
    run_job(directory, ROWS)
    (directory / MANIFEST_NAME).unlink()  # as an earlier version wrote it
    (tmp_path / "mine").rename(directory / "records")
    assert run_job(directory, ROWS) == []
    (directory / "part-00001.jsonl").unlink()
    assert run_job(directory, ROWS) == [1]
    (directory / "part-of-mine.jsonl").write_text("mine")
    (directory / "part-00009.jsonl").write_text("mine")
    link = directory / ".typst-lit-records"
    link.symlink_to(directory / "records")
    assert run_job(directory, ROWS, overwrite=True) == [0, 1, 2]
    for name in ("part-of-mine.jsonl", "part-00009.jsonl", "records/mine.json"):
        assert (directory / name).read_text() == "mine"
    assert not link.exists() and {path.name for path in (directory / "records").iterdir()} == {"mine.json"}


def test_manifest_with_the_former_keys_is_adopted(tmp_path) -> None:
    provenance = {**PROVENANCE, "generation.prompt_lookup": True}
    run_job(tmp_path, ROWS, provenance)
    manifest = read_manifest(tmp_path)
    former = {**manifest.pop("provenance"), "generation.draft": True}
    del former["generation.prompt_lookup"]
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "made": former}))
    assert run_job(tmp_path, ROWS, provenance) == []
    assert read_manifest(tmp_path)["provenance"] == {**provenance, "shard_size": 3}
