"""What an adapter's files say of its training: written by a run, read wherever the adapter is used."""

from __future__ import annotations

import json
import shutil

import pytest

from typst_lit.contract import TextContract
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.data.prompts import ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.generator import Generator
from typst_lit.inference.model_spec import resolve_model
from typst_lit.model.locations import AdapterMetadata, adapter_metadata, adapter_template
from typst_lit.model.saving import write_metadata

CONTRACT = TextContract(num_pairs=3, typst_version="0.15.2", min_fidelity=0.97, style_words=("page",))


@pytest.mark.parametrize(
    "metadata", [AdapterMetadata(), AdapterMetadata({"temperature": 0.2, "seed": 3}, 900, CONTRACT)]
)
def test_what_is_written_is_read(tmp_path, metadata) -> None:
    write_metadata(tmp_path, ReportPrompt(), metadata)
    assert adapter_metadata(tmp_path) == metadata and adapter_template(tmp_path) == ReportPrompt()


def test_a_directory_without_metadata_says_nothing(tmp_path) -> None:
    assert adapter_metadata(tmp_path) == AdapterMetadata()
    (tmp_path / "typst_lit.json").write_text('{"template": {}, "sha256": []}')  # as older versions wrote it
    assert adapter_metadata(tmp_path) == AdapterMetadata()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", [1]),
        ("max_completion_tokens", 0),
        ("max_completion_tokens", True),
        ("max_completion_tokens", "900"),
        ("contract", "none"),
        ("contract", {"num_pairs": 3}),
        ("contract", {**CONTRACT.to_json(), "min_fidelity": "high"}),
    ],
)
def test_damaged_values_are_errors_that_name_the_file(tmp_path, key, value) -> None:
    (tmp_path / "typst_lit.json").write_text(json.dumps({key: value}))
    with pytest.raises(UserError, match=r"typst_lit\.json: is damaged") as raised:
        adapter_metadata(tmp_path)
    assert key.partition("_")[0] in str(raised.value)


def test_a_run_stores_the_length_of_its_longest_completion(run, fit_args, tmp_path, tokenizer) -> None:
    assert run(*fit_args, "--trainer.max_steps", 1, "--contract.max_pairs", 0).status == 0
    metadata = adapter_metadata(tmp_path / "run" / "adapter" / "best")
    data = TypstDataModule(fit_args[2])
    data.tokenizer = tokenizer
    data.load("fit")
    lengths, prompt_lengths = data.train_lengths
    assert metadata == AdapterMetadata({}, max(map(int, lengths - prompt_lengths)))


def test_the_contract_of_each_adapter_reaches_the_generator(able_adapter, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(able_adapter / "adapter" / "best", other)
    content = json.loads((other / "typst_lit.json").read_text())
    (other / "typst_lit.json").write_text(json.dumps({**content, "contract": CONTRACT.to_json()}))
    paths = {"plain": able_adapter, "strict": other}
    assert resolve_model(paths, use_4bit=False).contracts == {"plain": None, "strict": CONTRACT}
    assert resolve_model(other, use_4bit=False, merge=True).contracts == {None: CONTRACT}
    generator = Generator.load(paths, use_4bit=False, compile=False)
    assert generator.contracts == {"plain": None, "strict": CONTRACT}


def test_a_merged_model_keeps_the_metadata(run, able_adapter, tmp_path) -> None:
    merged = tmp_path / "merged"
    assert run("export", "--model", able_adapter, "--to", "merged", "--output", merged, "--no-check").status == 0
    metadata = adapter_metadata(merged)
    assert metadata.max_completion_tokens and metadata == adapter_metadata(able_adapter / "adapter" / "best")
    spec = resolve_model(base_model=str(merged))
    assert list(spec.contracts) == list(spec.templates) == [None]
