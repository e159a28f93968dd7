"""What the tests share: a tiny real model, the sample records, and the real command line."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="typst-lit-tests-")  # before datasets is imported
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from typst_lit.cli import main
from typst_lit.contract import TextContract
from typst_lit.model.locations import METADATA_FILE

SAMPLES = Path(__file__).parent / "data" / "reports.json"


@dataclass
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the real command line in this process and returns its exit status and output."""

    def call(*args: object) -> Result:
        capfd.readouterr()
        status = main([str(arg) for arg in args])
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two layers with random weights and a tokenizer of its own."""
    from benchmarks.nano.tiny_model import make_tiny_model, tokenizer_texts

    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "tiny", tokenizer_texts(SAMPLES), vocab_size=512, hidden_size=64
    )


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def able_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an adapter for typst-nano in 4 bits, with which it still writes documents."""
    directory = tmp_path_factory.mktemp("able") / "run"
    args = [
        "fit", "--model.base_model", "typst-nano", "--run_dir", str(directory), "--trainer.accelerator", "cpu",
        "--data.source", "benchmarks.nano.source.SyntheticReports", "--data.source.init_args.count", "16",
        "--data.val_fraction", "0.25", "--data.group_by", "none", "--eval.every_n_epochs", "0",
        "--model.learning_rate", "1e-4", "--trainer.max_epochs", "1", "--model.warmup_steps", "1",
        "--trainer.accumulate_grad_batches", "1", "--model.gradient_checkpointing", "false",
        "--contract.max_pairs", "0",  # the reports are of many styles
    ]  # fmt: skip
    assert main(args) == 0
    return directory


def add_contract(adapter: Path, contract: TextContract) -> None:
    """Stores a text contract with an adapter, as fit does."""
    file = adapter / METADATA_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "contract": contract.to_json()}))


@pytest.fixture(scope="session")
def contract_adapter(able_adapter, tmp_path_factory) -> Path:
    """The adapter of `able_adapter` with a text contract."""
    adapter = tmp_path_factory.mktemp("contract") / "adapter"
    shutil.copytree(able_adapter / "adapter" / "best", adapter)
    add_contract(adapter, TextContract(12, "0.15.2", min_fidelity=0.9, style_words=("page", "figure", "table")))
    return adapter


@pytest.fixture(scope="session")
def able_pairs() -> list[dict[str, Any]]:
    """Short pairs in styles that typst-nano knows, for whose records it writes documents that compile."""
    from benchmarks.nano.source import SyntheticReports

    pairs = [row.value for row in SyntheticReports(60, seed=31).rows()]
    return [pair for pair in pairs if len(pair["output"]) < 1600 and pair["output"].startswith("#set page(")][:6]


@pytest.fixture
def pairs() -> list[dict[str, Any]]:
    """The pairs of `SAMPLES`."""
    return json.loads(SAMPLES.read_text("utf-8"))


@pytest.fixture
def fit_args(tiny_model: Path, tmp_path: Path) -> list[str]:
    """The arguments of a fit that takes seconds: 8 short pairs of two projects, 4 held out."""
    return [
        "fit", "--data.path", str(SAMPLES), "--model.base_model", str(tiny_model), "--run_dir", str(tmp_path / "run"),
        "--trainer.accumulate_grad_batches", "1", "--trainer.max_epochs", "2", "--model.warmup_steps", "1",
        "--data.batch_size", "2", "--trainer.accelerator", "cpu", "--eval.every_n_epochs", "0",
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _restore_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Makes the random numbers of a test the same, whichever tests ran before it."""
    random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
