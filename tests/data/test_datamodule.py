"""The data module through the real command line: what a user sees when the data is good, and when it is not."""

from __future__ import annotations

import json

import pytest

from tests.conftest import SAMPLES

NO_MODEL = ["--model.base_model", "/nowhere/no-model", "--trainer.accelerator", "cpu"]


def write(path, value):
    path.write_text(json.dumps(value), "utf-8")
    return path


def test_all_errors_are_listed_before_a_model_is_loaded(run, tmp_path, pairs) -> None:
    pairs[1]["input"]["starting_page"] = "one"
    pairs[1]["output"] = ""
    del pairs[4]["input"]["department"]
    path = write(tmp_path / "bad.json", pairs)
    result = run("fit", "--data.path", path, "--run_dir", tmp_path / "run", *NO_MODEL)
    assert result.status == 1 and "Traceback" not in result.err
    assert "2 of 12 records are invalid" in result.err
    for words in (
        "record 1 (line 1): field 'starting_page'",
        "record 1 (line 1): field 'output'",
        "record 4",
        "'department'",
    ):
        assert words in result.err
    assert "on_invalid" in result.err
    assert "no-model" not in result.err


def test_skipped_records_are_counted_with_and_without_a_cache(run, tmp_path, pairs, fit_args) -> None:
    pairs[1]["output"] = ""
    path = write(tmp_path / "bad.json", pairs)
    for attempt in range(2):
        result = run(
            *fit_args,
            "--data.path",
            path,
            "--data.on_invalid",
            "skip",
            "--trainer.max_steps",
            1,
            "--run_dir",
            tmp_path / f"run{attempt}",
        )
        assert result.status == 0, result.err
        assert "1 of 12 records is invalid and skipped" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "empty list"), ("", "is empty"), ('"text"', "top level"), ("[1, 2]", "must be an object")],
)
def test_files_without_a_valid_record(run, tmp_path, content, message) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(content)
    result = run("fit", "--data.path", path, "--run_dir", tmp_path / "run", *NO_MODEL)
    assert result.status == 1 and message in result.err and str(path) in result.err
    assert "on_invalid" not in result.err.split("Fix")[1]  # skipping would leave nothing


def test_no_path_and_a_missing_path(run, tmp_path) -> None:
    assert "data.path" in run("fit", "--run_dir", tmp_path, *NO_MODEL).err
    result = run("fit", "--run_dir", tmp_path, "--data.path", SAMPLES.with_name("report.json"), *NO_MODEL)
    assert result.status == 1 and "reports.json" in result.err  # what the folder has instead


def test_complete_groups_are_held_out(run, fit_args) -> None:
    result = run(*fit_args, "--trainer.max_steps", 1)
    assert result.status == 0, result.err
    assert "Held out for validation: 4 of 12 records" in result.err
    assert "33 % of the records instead of 10 %" in result.err


def test_near_duplicates_across_the_split_are_named(run, fit_args, tmp_path, pairs) -> None:
    copies = []
    for pair in pairs:
        paragraphs = pair["input"]["contents_txt"].split("\n\n")
        copies.append({**pair, "input": {**pair["input"], "contents_txt": "\n\n".join(paragraphs[::-1])}})
    path = write(tmp_path / "twins.json", pairs + copies)
    args = [*fit_args, "--data.path", path, "--trainer.max_steps", 1, "--data.val_fraction", 0.25]
    leaking = run(*args, "--data.group_by", "none")
    assert "have a near-duplicate" in leaking.err and "is similar to" in leaking.err
    grouped = run(*args, "--run_dir", tmp_path / "grouped")
    assert grouped.status == 0 and "near-duplicate" not in grouped.err


def test_group_by_an_unknown_field(run, fit_args) -> None:
    result = run(*fit_args, "--data.group_by", "author")
    assert result.status == 1 and "no field 'author'" in result.err and "project_title" in result.err


@pytest.mark.parametrize("policy", ["drop", "error", "truncate_text", "truncate_completion"])
def test_samples_that_are_too_long_are_always_reported(run, fit_args, policy) -> None:
    args = [*fit_args, "--data.overlength", policy, "--data.max_length", 700, "--trainer.max_steps", 1]
    result = run(*args)
    assert result.status == (1 if policy == "error" else 0), result.err
    assert "samples are longer than 700 tokens" in result.err and "record" in result.err
    messages = {
        "drop": "Dropped: ",
        "error": "data.overlength",
        "truncate_text": "Text truncated: ",
        "truncate_completion": "Completion truncated, without an EOS token: ",
    }
    assert messages[policy] in result.err


def test_a_length_that_leaves_nothing_is_an_error(run, fit_args) -> None:
    result = run(*fit_args, "--data.max_length", 20)
    assert result.status == 1 and "no train sample is left" in result.err and "data.max_length" in result.err


def make_data(tiny_model, **options):
    from lightning.pytorch import Trainer
    from lightning.pytorch.trainer.states import TrainerFn
    from transformers import AutoTokenizer

    from typst_lit.data.datamodule import TypstDataModule

    data = TypstDataModule(path=str(SAMPLES), **options)
    data.tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.trainer.state.fn = TrainerFn.FITTING
    data.prepare_data()
    data.setup("fit")
    return data


def test_auto_length_covers_all_up_to_the_cap(tiny_model) -> None:
    data = make_data(tiny_model)
    assert data.length_limit == max(
        batch.input_ids.shape[1] for batch in [*data.train_dataloader(), *data.val_dataloader()]
    )
    assert make_data(tiny_model, max_length_cap=700).length_limit == 700


def test_a_truncated_completion_has_no_eos(tiny_model) -> None:
    data = make_data(tiny_model, max_length=700, overlength="truncate_completion")
    eos = data.encoder.tokenizer.eos_token_id
    has_eos = [
        row[length - 1].item() == eos
        for batch in data.train_dataloader()
        for row, length in zip(batch.input_ids, batch.lengths, strict=True)
    ]
    lengths = [length for batch in data.train_dataloader() for length in batch.lengths]
    assert max(lengths) == 700
    assert has_eos == [length < 700 for length in lengths] and not all(has_eos) and any(has_eos)


def test_a_truncated_text_keeps_the_completion_intact(tiny_model) -> None:
    data = make_data(tiny_model, max_length=700, overlength="truncate_text")
    for batch in data.train_dataloader():
        for row, length in zip(batch.input_ids, batch.lengths, strict=True):
            assert length <= 700 and row[length - 1].item() == data.encoder.tokenizer.eos_token_id


def test_workers_give_the_same_batches(tiny_model) -> None:
    alone = [batch.origins for batch in make_data(tiny_model).train_dataloader()]
    assert [batch.origins for batch in make_data(tiny_model, num_workers=2).train_dataloader()] == alone


def test_several_processes_tokenize_the_same(tiny_model, tmp_path) -> None:
    one = make_data(tiny_model, cache_dir=str(tmp_path / "one"))
    two = make_data(tiny_model, cache_dir=str(tmp_path / "two"), num_proc=2)
    assert one._tables["train"]["input_ids"][:] == two._tables["train"]["input_ids"][:]


def test_cached_tables_are_not_tokenized_again(tiny_model, tmp_path, monkeypatch) -> None:
    from typst_lit.data import tokenization

    first = make_data(tiny_model, cache_dir=str(tmp_path))

    def fail(*args, **kwargs):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(tokenization, "_tokenize_rows", fail)
    again = make_data(tiny_model, cache_dir=str(tmp_path))
    assert again._tables["train"]["input_ids"][:] == first._tables["train"]["input_ids"][:]
    with pytest.raises(AssertionError, match="tokenized again"):
        make_data(tiny_model, cache_dir=str(tmp_path / "other"))


def test_another_field_set_comes_from_the_configuration(run, fit_args, tmp_path) -> None:
    notes = [
        {"input": {"heading": f"Note {n}", "body": f"Body of note {n}"}, "output": f"= Note {n}\n\nBody"}
        for n in range(8)
    ]
    path = write(tmp_path / "notes.json", notes)
    config = tmp_path / "notes.yaml"
    config.write_text(
        "data:\n  template:\n    class_path: FormatPrompt\n    init_args:\n"
        '      text: "{heading}\\n{body}\\n### Typst\\n"\n'
    )
    result = run(fit_args[0], "--config", config, *fit_args[1:], "--data.path", path)
    assert result.status == 0, result.err
    saved = json.loads((tmp_path / "run/adapter/best/typst_lit.json").read_text())
    assert saved["template"]["init_args"]["text"].startswith("{heading}")
    new = write(tmp_path / "new.json", {"heading": "H", "body": "B"})
    result = run(
        "predict",
        "--data.predict_path",
        new,
        "--model.adapter_path",
        tmp_path / "run",
        "--model.base_model",
        fit_args[4],
        "--run_dir",
        tmp_path / "run",
        "--generation.max_tokens",
        3,
        "--trainer.accelerator",
        "cpu",
    )
    assert result.status == 0, result.err  # with the adapter's own template, though none was named
    results = json.loads((tmp_path / "run/predictions/predictions.json").read_text())
    assert results[0]["input"] == {"heading": "H", "body": "B"}


def test_lengths_prints_tables_and_draws_a_histogram(run, tiny_model, tmp_path) -> None:
    import numpy as np
    from transformers import AutoTokenizer

    from typst_lit.data.encoding import Encoder
    from typst_lit.data.prompts import ReportPrompt

    image = tmp_path / "deep" / "lengths.png"
    result = run("lengths", "--data.path", SAMPLES, "--model.base_model", tiny_model, "--output", image)
    assert result.status == 0, result.err
    pairs = json.loads(SAMPLES.read_text())
    encoder = Encoder(AutoTokenizer.from_pretrained(tiny_model), ReportPrompt())
    encoded = encoder.encode([pair["input"] for pair in pairs], [pair["output"] for pair in pairs])
    totals = np.array([len(ids) for ids in encoded["input_ids"]])
    total = next(line for line in result.out.splitlines() if line.startswith("total")).split()
    assert total[1] == str(totals.min()) and total[-2] == str(totals.max())
    fits = next(line for line in result.out.splitlines() if line.startswith("samples that fit")).split()[3:]
    assert fits[0] == f"{(totals <= 512).mean():.0%}" and fits[-1] == "100%"
    waste = next(line for line in result.out.splitlines() if line.startswith("padding")).split()[4:]
    assert waste[-1] == f"{1 - totals.mean() / 8192:.0%}"
    assert image.read_bytes().startswith(b"\x89PNG")


def test_lengths_of_a_bad_file_needs_no_tokenizer(run, tmp_path) -> None:
    path = write(tmp_path / "bad.json", [{"input": {}}])
    result = run("lengths", "--data.path", path, "--model.base_model", "/nowhere/no-model")
    assert result.status == 1 and "is missing" in result.err and "no-model" not in result.err
