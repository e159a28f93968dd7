"""The private API of datasets that is used: each test fails when what it uses moves."""

from __future__ import annotations

from datasets import Dataset

from typst_lit._compat.datasets import fingerprint


def test_the_fingerprint_of_a_table_follows_its_content() -> None:
    table = Dataset.from_dict({"number": [1, 2, 3]})
    assert fingerprint(table) == fingerprint(table)
    assert fingerprint(table.select([0, 2])) != fingerprint(table)
    assert fingerprint(table.map(lambda row: row, new_fingerprint="given")) == "given"
