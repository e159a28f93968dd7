"""``predict`` and ``generate`` write the same results, and each resumes what the other began."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from typst_lit.callbacks import PredictionWriter
from typst_lit.errors import UserError

ATTEMPTS = 2


def comparable(path: Path) -> list[dict[str, Any]]:
    """Returns the results of a file without ``seconds``, which no two runs share."""
    results = json.loads(path.read_text("utf-8"))
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


@pytest.fixture
def records(tmp_path, pairs) -> Path:
    path = tmp_path / "records.json"
    path.write_text(json.dumps([pair["input"] for pair in pairs[:5]]), "utf-8")
    return path


@pytest.fixture
def commands(run, fit_args, tmp_path, tiny_model, records) -> dict[str, Callable[..., Any]]:
    """Both commands, for the same adapter, records and settings; each takes the output file and further flags."""
    assert run(*fit_args, "--trainer.max_steps", 1).status == 0

    def predict(output: Path, *flags: object) -> Any:
        return run(
            "predict", "--model.base_model", tiny_model, "--model.adapter_path", tmp_path / "run", "--run_dir",
            tmp_path / "run", "--data.predict_path", records, "--predict.output", output, "--predict.attempts",
            ATTEMPTS, "--data.eval_batch_size", 2, "--generation.max_tokens", 12, "--generation.seed", 5,
            "--trainer.accelerator", "cpu", *flags,
        )  # fmt: skip

    def generate(output: Path, *flags: object) -> Any:
        return run(
            "generate", "--base-model", tiny_model, "--model", tmp_path / "run", "--input", records, "--output", output,
            "--attempts", ATTEMPTS, "--batch-size", 3, "--max-tokens", 12, "--seed", 5, *flags,
        )  # fmt: skip

    return {"predict": predict, "generate": generate}


def test_predict_and_generate_give_equal_results(commands, tmp_path) -> None:
    outputs = {name: tmp_path / name / "documents.json" for name in commands}
    for name, command in commands.items():
        result = command(outputs[name])
        assert result.status == 0, result.err
    predicted, generated = (comparable(output) for output in outputs.values())
    assert predicted == generated and len(predicted) == 5
    assert any(result["attempts"] == ATTEMPTS for result in predicted)
    settings = [json.loads(output.with_suffix(".run.json").read_text("utf-8")) for output in outputs.values()]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(("first", "second"), [("predict", "generate"), ("generate", "predict")])
def test_one_command_resumes_the_results_of_the_other(commands, tmp_path, first, second) -> None:
    output = tmp_path / "documents.json"
    assert commands[first](output).status == 0
    complete = comparable(output)
    results = json.loads(output.read_text("utf-8"))
    kept = [results[3], results[0]]  # by record, not by prefix
    output.write_text(json.dumps(kept), "utf-8")
    resumed = commands[second](output)
    assert resumed.status == 0 and "2 of 5 documents already exist" in resumed.err, resumed.err
    assert comparable(output) == complete
    resumed_results = json.loads(output.read_text("utf-8"))
    assert [resumed_results[index]["seconds"] for index in (3, 0)] == [result["seconds"] for result in kept]


def test_each_document_is_a_file_and_compiled_ones_are_pdfs(commands, tmp_path) -> None:
    output = tmp_path / "documents.json"
    result = commands["predict"](output, "--predict.typ_dir", tmp_path / "files")
    assert result.status == 0, result.err
    results = json.loads(output.read_text("utf-8"))
    sources = sorted((tmp_path / "files").glob("*.typ"))
    assert [source.read_text("utf-8") for source in sources] == [result["generated_output"] for result in results]
    for source, result in zip(sources, results, strict=True):
        assert result["compiled"] == source.with_suffix(".pdf").is_file() == (result["pages"] > 0)
        assert result["compiled"] or result["diagnostics"]


def test_without_compiling_there_is_one_attempt_and_no_pdf(commands, tmp_path) -> None:
    output = tmp_path / "documents.json"
    assert commands["predict"](output, "--predict.compile", "false").status == 0
    assert all("compiled" not in result and result["attempts"] == 1 for result in comparable(output))
    assert not list(tmp_path.glob("*.pdf"))
    different = commands["predict"](output)
    assert different.status == 1 and "different settings (compile)" in different.err


def test_attempts_below_one_are_rejected() -> None:
    with pytest.raises(UserError, match=r"predict\.attempts"):
        PredictionWriter(attempts=0)
