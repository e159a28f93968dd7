from __future__ import annotations

import json
import random

import pytest

from typst_lit.data import sources
from typst_lit.data.sources import FileSource, HubSource, open_source
from typst_lit.errors import UserError


def rows(path):
    return list(FileSource(str(path)).rows())


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


RECORDS = [{"a": 1, "text": 'quote " bracket ] brace }'}, {"a": 2, "text": "ünïcødé 𝄞\n"}, {"a": [3, {"b": "]"}]}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_a_list_is_read_with_any_chunk_size(tmp_path, monkeypatch, indent, chunk) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk)
    text = json.dumps(RECORDS, indent=indent, ensure_ascii=False)
    for bom in (b"", b"\xef\xbb\xbf"):
        if chunk < 3 and bom:
            continue
        found = rows(write(tmp_path / "list.json", bom + text.encode()))
        assert [row.value for row in found] == RECORDS and not any(row.error for row in found)


def test_the_origins_of_a_list_have_line_numbers(tmp_path) -> None:
    path = write(tmp_path / "list.json", '[\n\n{"a": 1},\n\n\n{"a": 2}\n]')
    assert [row.origin for row in rows(path)] == [f"{path}, record 0 (line 3)", f"{path}, record 1 (line 6)"]


def test_one_object_pretty_or_not(tmp_path) -> None:
    for indent in (None, 2):
        found = rows(write(tmp_path / "one.json", json.dumps(RECORDS[0], indent=indent)))
        assert [row.value for row in found] == [RECORDS[0]]


@pytest.mark.parametrize("name", ["lines.jsonl", "lines.ndjson", "lines.json"])
def test_json_lines_under_any_name(tmp_path, name) -> None:
    text = "\n\n".join(json.dumps(record) for record in RECORDS)
    found = rows(write(tmp_path / name, text))
    assert [row.value for row in found] == RECORDS
    assert found[1].origin.endswith("line 3")


def test_parquet_and_folder(tmp_path) -> None:
    from datasets import Dataset

    pairs = [{"input": {"a": index}, "output": "x"} for index in range(3)]
    Dataset.from_list(pairs).to_parquet(tmp_path / "b.parquet")
    write(tmp_path / "a.json", json.dumps(pairs[:2]))
    write(tmp_path / "notes.txt", "not data")
    assert [row.value for row in rows(tmp_path)] == pairs[:2] + pairs


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.json", "", "is empty"),
        ("blank.jsonl", "  \n\n", "is empty"),
        ("list.json", "[]", "empty list"),
        ("list.json", " [ \n ] ", "empty list"),
        ("top.json", '"text"', "at the top level"),
        ("top.json", "5", "at the top level"),
        ("top.json", "null", "at the top level"),
        ("cut.json", '[{"a": 1}, {"a": ', "not valid JSON"),
        ("comma.json", '[{"a": 1} {"a": 2}]', "expected ','"),
        ("more.json", '[{"a": 1}] x', "after the end"),
        ("deep.json", "[" * 100_000, "not valid JSON"),
        ("digits.json", "[" + "9" * 5000 + "]", "not valid JSON"),
        ("lines.jsonl", '{"a": 1}\n{"a": \n{"a": 3}', "not valid JSON"),
        ("latin.json", '[{"a": "é"}]'.encode("latin-1"), "not UTF-8"),
        ("latin.json", '{"a": "é"}'.encode("latin-1"), "not UTF-8"),
        ("latin.jsonl", '{"a": "é"}\n{"a": 1}'.encode("latin-1"), "not UTF-8"),
        ("wide.json", '[{"a": 1}]'.encode("utf-16"), "UTF-16"),
        ("not.parquet", "no parquet", "not a readable Parquet"),
    ],
)
def test_each_error_has_its_own_message(tmp_path, name, content, message) -> None:
    invalid = [row for row in rows(write(tmp_path / name, content)) if row.error]
    assert len(invalid) == 1
    assert message in invalid[0].error and name in invalid[0].origin


def test_the_position_of_a_byte_that_is_not_utf8(tmp_path) -> None:
    (row,) = [row for row in rows(write(tmp_path / "bad.json", b'[\n{"a": 1},\n{"a": "\xff"}]')) if row.error]
    assert row.origin.endswith("record 1 (line 3)") and "0xff" in row.error


def test_an_invalid_line_does_not_affect_the_others(tmp_path) -> None:
    found = rows(write(tmp_path / "lines.jsonl", '{"a": 1}\n{"a": \n{"a": 3}'))
    assert [row.value for row in found] == [{"a": 1}, None, {"a": 3}]
    assert found[1].origin.endswith("line 2")


def test_errors_of_missing_files_list_the_files_that_exist(tmp_path) -> None:
    write(tmp_path / "pairs.json", "[]")
    with pytest.raises(UserError, match=r"no such file.*pairs\.json"):
        open_source(str(tmp_path / "pair.json"))
    with pytest.raises(UserError, match=r"contains no \.json"):
        list(open_source(str(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")).rows())
    with pytest.raises(UserError, match="ends in"):
        list(open_source(str(write(tmp_path / "pairs.csv", "a,b"))).rows())


def test_a_hub_data_set_that_cannot_be_loaded_says_why() -> None:
    source = open_source("nobody/no-such-data")
    assert isinstance(source, HubSource)
    with pytest.raises(UserError, match=r"nobody/no-such-data.*data set of the hub"):
        list(source.rows())


def test_the_fingerprint_follows_the_content(tmp_path) -> None:
    path = write(tmp_path / "a.json", "[1]")
    before = FileSource(str(path)).fingerprint()
    write(path, "[2]")
    assert FileSource(str(path)).fingerprint() != before
    write(path, "[1]")
    assert FileSource(str(path)).fingerprint() == before


def test_random_lists_survive_random_chunks(tmp_path, monkeypatch) -> None:
    generator = random.Random(3)
    for trial in range(30):
        records = [{"t": "".join(generator.choices('ab"\\{}[],:é𝄞\n ', k=generator.randrange(40)))} for _ in range(8)]
        monkeypatch.setattr(sources, "CHUNK_BYTES", generator.randrange(4, 40))
        path = write(tmp_path / f"{trial}.json", json.dumps(records, ensure_ascii=generator.random() < 0.5))
        assert [row.value for row in rows(path)] == records
