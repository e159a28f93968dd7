"""Files of the cache that were cut or emptied are created again, with a line in the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SAMPLES
from typst_lit.data.encoding import Encoder
from typst_lit.data.length_policy import LengthPolicy
from typst_lit.data.prompts import ReportPrompt
from typst_lit.data.sources import FileSource
from typst_lit.data.table import load_records
from typst_lit.data.tokenization import tokenize


@pytest.mark.parametrize("name", ["generator-train.arrow", "cache-*.arrow", "dataset_info.json"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_damaged_file_is_created_again(tokenizer, tmp_path, caplog, name, share) -> None:
    encoder = Encoder(tokenizer, ReportPrompt())

    def load() -> list[list[int]]:
        table = tokenize(load_records(FileSource(str(SAMPLES)), ReportPrompt(), cache_dir=str(tmp_path)), encoder)
        longest = max(table["length"])
        return list(LengthPolicy(longest - 10, "truncate_text").apply("train", table, encoder)["input_ids"])

    ids = load()
    files = [path for path in tmp_path.rglob(name) if path.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        file.unlink()  # another table of this process may have mapped the old file
        file.write_bytes(content[: int(len(content) * share)])
    caplog.clear()
    assert load() == ids
    assert "damaged" in caplog.text and str(tmp_path) in caplog.text
    caplog.clear()
    assert load() == ids
    assert "damaged" not in caplog.text


def test_fit_reads_the_data_again(run, fit_args, tmp_path) -> None:
    cache = tmp_path / "cache"
    args = [*fit_args, "--data.cache_dir", cache, "--trainer.max_steps", "1"]
    assert run(*args).status == 0
    for file in cache.rglob("*.arrow"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[: len(content) // 2])
    result = run(*args, "--run_dir", tmp_path / "again")
    assert result.status == 0 and "Traceback" not in result.err, result.err
    directories = [path for path in Path(cache, "generator").iterdir() if path.is_dir()]
    assert any(f"warning: {path}: the cached records are damaged" in result.err for path in directories)
