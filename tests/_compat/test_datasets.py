"""The private API of datasets that is used: each test fails when what it uses moves."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from typst_lit._compat.datasets import fingerprint, generator_cache


def test_the_fingerprint_of_a_table_follows_its_content() -> None:
    table = Dataset.from_dict({"number": [1, 2, 3]})
    assert fingerprint(table) == fingerprint(table)
    assert fingerprint(table.select([0, 2])) != fingerprint(table)
    assert fingerprint(table.map(lambda row: row, new_fingerprint="given")) == "given"


def test_the_cache_of_a_generated_table_is_found(tmp_path) -> None:
    rows = [{"number": 1}]
    table = Dataset.from_generator(lambda: iter(rows), cache_dir=str(tmp_path), fingerprint="given")
    (file,) = table.cache_files
    assert Path(file["filename"]).is_relative_to(generator_cache(str(tmp_path), "given"))
