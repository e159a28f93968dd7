from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import SAMPLES, add_contract
from typst_lit.callbacks.evaluation import Evaluation
from typst_lit.contract import TextContract
from typst_lit.errors import UserError


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_model) -> Path:
    """A run directory whose model was trained on the samples, so that some of what it writes compiles."""
    from typst_lit.cli import main

    run_dir = tmp_path_factory.mktemp("learned")
    args = [
        "fit", "--data.path", str(SAMPLES), "--data.val_fraction", "0.3", "--data.group_by", "none",
        "--model.base_model", str(tiny_model), "--run_dir", str(run_dir), "--model.adapter", "null",
        "--model.use_4bit", "false", "--trainer.accumulate_grad_batches", "1", "--trainer.max_epochs", "4",
        "--model.warmup_steps", "1", "--model.learning_rate", "1e-2", "--eval.every_n_epochs", "2",
        "--eval.records", "2", "--contract.max_pairs", "0",
        "--generation.max_tokens", "40", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    assert main(args) == 0
    return run_dir


def events(run_dir: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(next(run_dir.glob("tensorboard/version_*"))), size_guidance={"images": 0})
    return accumulator.Reload()


def test_fit_logs_scores_and_pages_every_n_epochs(learned) -> None:
    tags = events(learned).Tags()
    scalars = {name for name in tags["scalars"] if name.startswith("val_")}
    assert {"val_loss", "val_perplexity", "val_compile_rate", "val_fidelity", "val_chrf", "val_rougeL"} <= scalars
    assert "val_compile_rate_after_repair" in scalars
    assert len(events(learned).Scalars("val_compile_rate")) == 2  # after epochs 2 and 4
    validated = [event.step for event in events(learned).Scalars("val_loss")]
    assert len(validated) == 4
    assert {"document_1/pages", "document_2/pages"} == set(tags["images"])
    images = events(learned).Images("document_1/pages")
    assert [image.step - 1 for image in images] == [validated[1], validated[3]]  # steps done, index of the last step
    assert images[0].width > images[0].height / 2  # next to its reference
    texts = [tag for tag in tags["tensors"] if tag.startswith("document_1/")]
    assert sorted(texts) == ["document_1/diagnostics/text_summary", "document_1/source/text_summary"]


def test_validate_scores_a_few_and_test_all(learned, run, tmp_path) -> None:
    base = [
        "--data.path", SAMPLES, "--model.base_model", learned / "model" / "best", "--model.adapter", "null",
        "--model.use_4bit", "false", "--run_dir", tmp_path, "--generation.max_tokens", 30,
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    validated = run("validate", *base, "--eval.records", 2)
    assert validated.status == 0 and "of 2 documents compile" in validated.err
    assert "val_compile_rate" in validated.out and "val_loss" in validated.out
    none = run("validate", *base, "--eval.records", 0)
    assert none.status == 0 and "documents compile" not in none.err
    tested = run("test", *base, "--data.test_path", SAMPLES)
    assert tested.status == 0 and "of 12 documents compile" in tested.err and "test_fidelity" in tested.out
    report = json.loads((tmp_path / "test" / "report.json").read_text())
    assert len(report["documents"]) == 12 and report["about"]["data"] == str(SAMPLES)
    assert {entry["finish_reason"] for entry in report["documents"]} <= {"length", "stop"}
    assert (tmp_path / "test" / "report.html").is_file()
    few = run("test", *base, "--eval.test_records", 3, "--eval.report_dir", tmp_path / "few")
    assert few.status == 0 and len(json.loads((tmp_path / "few" / "report.json").read_text())["documents"]) == 3


def test_clean_documents_are_counted_with_the_contract_of_the_adapter(fit_args, run, tmp_path, pairs) -> None:
    assert run(*fit_args, "--trainer.max_steps", 1, "--contract.max_pairs", 0).status == 0
    (tmp_path / "pairs.json").write_text(json.dumps(pairs[:2]))
    base = [
        "--model.base_model", fit_args[4], "--model.adapter_path", tmp_path / "run", "--run_dir", tmp_path / "test",
        "--generation.max_tokens", 5, "--generation.temperature", 0, "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    for name, rate in (("best", None), ("best", 0.0)):
        if rate is not None:
            add_contract(tmp_path / "run" / "adapter" / name, TextContract(8, "0.15.2", min_fidelity=0.9))
        tested = run("test", *base, "--data.test_path", tmp_path / "pairs.json")
        assert tested.status == 0, tested.err
        report = json.loads((tmp_path / "test" / "test" / "report.json").read_text())
        assert report["scores"].get("clean_rate") == rate
        assert ("0 are clean" in tested.err) == ("test_clean_rate" in tested.out) == (rate is not None)
        assert all("cut off at the token limit" in entry["problems"] for entry in report["documents"])
        assert {entry["clean"] for entry in report["documents"]} == {None if rate is None else False}
    (tmp_path / "new.json").write_text(json.dumps([pair["input"] for pair in pairs[:2]]))
    predicted = run("predict", *base, "--data.predict_path", tmp_path / "new.json")
    assert predicted.status == 0 and "warning: 0 of 2 documents are clean." in predicted.err, predicted.err
    assert predicted.err.count("not clean: ") == 2


def test_predict_compiles_by_default(learned, run, tmp_path, pairs) -> None:
    records = tmp_path / "new.json"
    records.write_text(json.dumps([pair["input"] for pair in pairs[:3]]))
    args = [
        "predict", "--data.predict_path", records, "--model.base_model", learned / "model" / "best",
        "--model.adapter", "null", "--model.use_4bit", "false", "--run_dir", tmp_path, "--trainer.accelerator", "cpu",
        "--generation.max_tokens", 25, "--generation.temperature", 0,
    ]  # fmt: skip
    result = run(*args)
    assert result.status == 0, result.err
    directory = tmp_path / "predictions"
    results = json.loads((directory / "predictions.json").read_text())
    sources = sorted(directory.glob("*.typ"))
    assert len(results) == len(sources) == 3
    for document, source in zip(results, sources, strict=True):
        assert document["compiled"] == source.with_suffix(".pdf").is_file() == (document["pages"] > 0)
        assert document["compiled"] or document["diagnostics"]
    different = run(*args, "--predict.compile", "false")
    assert different.status == 1 and "different settings (compile)" in different.err


def test_invalid_settings_are_named() -> None:
    for name in ("every_n_epochs", "records", "test_records"):
        with pytest.raises(UserError, match=f"eval.{name}"):
            Evaluation(**{name: -1})


@pytest.mark.slow
def test_two_processes_report_the_same_as_one(learned, tmp_path) -> None:
    reports = []
    for number, devices in enumerate((1, 2)):
        args = [
            "test", "--data.test_path", SAMPLES, "--model.base_model", learned / "model" / "best",
            "--model.adapter", "null", "--model.use_4bit", "false", "--generation.temperature", 0,
            "--generation.max_tokens", 40, "--data.eval_batch_size", 1, "--trainer.accelerator", "cpu",
            "--trainer.devices", devices, "--trainer.strategy", "ddp", "--run_dir", tmp_path / str(number),
        ]  # fmt: skip
        command = [sys.executable, "-m", "typst_lit", *map(str, args)]
        # The same number of threads in both: the order of a sum decides between tokens of nearly equal probability.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
        assert process.returncode == 0, process.stderr
        reports.append(json.loads((tmp_path / str(number) / "test" / "report.json").read_text()))
    assert reports[0] == reports[1] and len(reports[0]["documents"]) == 12
