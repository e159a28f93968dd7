"""The built-in base model, loaded by its name: it is small, copies records, and learns a style."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.nano.source import SyntheticReports
from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.model.locations import path_or_name


def test_it_is_small_and_in_16_bits() -> None:
    from safetensors import safe_open

    weights = Path(path_or_name("typst-nano")) / "model.safetensors"
    assert weights.stat().st_size < 20e6
    with safe_open(weights, "pt") as opened:
        assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("use_4bit", [True, False])
def test_it_loads_by_its_name_in_any_working_directory(use_4bit, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = PretrainedBackbone().load_model("typst-nano", None, False, use_4bit, torch.device("cpu"))
    assert model.name_or_path == "typst-nano" and 5e6 < model.num_parameters() < 15e6


def test_it_copies_records_into_documents_that_compile(run, tmp_path) -> None:
    """Held-out words in styles of its training data; benchmarks/LOG.md has the complete measurement."""
    pairs = tmp_path / "pairs.jsonl"
    source = SyntheticReports(12, seed=11, unseen=True)
    pairs.write_text("".join(json.dumps(row.value) + "\n" for row in source.rows()))
    result = run(
        "test", "--data.test_path", pairs, "--model.base_model", "typst-nano", "--model.adapter", "null",
        "--model.use_4bit", "false", "--run_dir", tmp_path, "--generation.temperature", 0,
        "--generation.repetition_penalty", 1, "--trainer.accelerator", "cpu", "--data.eval_batch_size", 12,
    )  # fmt: skip
    assert result.status == 0, result.err
    scores = json.loads((tmp_path / "test" / "report.json").read_text())["scores"]
    assert scores["compile_rate"] > 0.6 and scores["fidelity"] > 0.6


def test_an_adapter_names_it_and_fit_lowers_its_loss(run, tmp_path) -> None:
    result = run(
        "fit", "--config", "configs/demo.yaml", "--run_dir", tmp_path, "--trainer.max_epochs", 2,
        "--eval.every_n_epochs", 0, "--trainer.accelerator", "cpu",
    )  # fmt: skip
    assert result.status == 0, result.err
    about = json.loads((tmp_path / "adapter/best/adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == "typst-nano"
    assert 'base_model: "typst-nano"' in (tmp_path / "adapter/best/README.md").read_text()
    losses = [
        float(line.split("val_loss ")[1].split(",")[0])
        for line in result.err.splitlines()
        if "val_loss " in line and "perplexity" in line
    ]
    assert losses[-1] < losses[0]
