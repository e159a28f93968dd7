"""Records to documents in Python and by `typst-lit generate`, with a model that can do it."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SAMPLES
from typst_lit.data.encoding import Encoder
from typst_lit.data.prompts import ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.attempts import Attempts
from typst_lit.inference.engine import Completion
from typst_lit.inference.generator import (
    Generator,
    inference_from_dict,
    inference_from_json_file,
    load_model_and_tokenizer,
)
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.typesetting.typesetter import Typesetter

GREEDY = GenerationSettings(temperature=0, repetition_penalty=1, max_tokens=1200)


@pytest.fixture(scope="module")
def generator(able_adapter) -> Generator:
    return Generator.load(able_adapter, settings=GREEDY)


def test_a_document_is_compiled_and_says_what_it_is(generator, able_pairs) -> None:
    document = generator.generate_one(able_pairs[0])
    assert document.compiled and document.finish_reason == "stop" and document.attempts == 1
    assert document.fidelity > 0.9
    assert document.input == able_pairs[0]["input"]
    told = json.loads(json.dumps(document.to_json()))
    assert told["generated_output"] == document.source and told["pages"] == document.result.page_count > 0
    assert {"compiled", "attempts", "repairs", "finish_reason", "tokens", "seconds"} <= told.keys()


def test_batch_and_order_do_not_matter_to_a_seed(able_adapter, able_pairs) -> None:
    records = able_pairs[:3]
    made = {}
    for size, order in ((1, records), (3, records[::-1])):
        settings = GenerationSettings(max_tokens=150, seed=5, temperature=2, top_k=0, top_p=1)
        generator = Generator.load(able_adapter, use_4bit=False, settings=settings, batch_size=size, compile=False)
        found = {order[place]["input"]["contents_txt"]: doc.source for place, doc in generator.generate(order)}
        made[size] = found
    assert made[1] == made[3] and len(set(made[1].values())) == 3
    other = Generator.load(
        able_adapter,
        use_4bit=False,
        settings=GenerationSettings(max_tokens=150, seed=6, temperature=2, top_k=0, top_p=1),
        compile=False,
    )
    assert other.generate_one(records[0]).source != made[1][records[0]["input"]["contents_txt"]]


def test_merged_and_unmerged_adapters_agree(able_adapter, able_pairs) -> None:
    settings = replace(GREEDY, max_tokens=200)
    apart = Generator.load(able_adapter, use_4bit=False, settings=settings)
    merged = Generator.load(able_adapter, use_4bit=False, merge=True, settings=settings)
    assert apart.generate_one(able_pairs[0]).source == merged.generate_one(able_pairs[0]).source
    with pytest.raises(UserError, match="--no-4bit"):
        Generator.load(able_adapter, merge=True)


def test_several_adapters_answer_by_name_over_one_base(able_adapter, tmp_path, run, able_pairs) -> None:
    other = tmp_path / "other"
    result = run(
        "fit", "--data.path", SAMPLES, "--run_dir", other, "--trainer.max_epochs", 1, "--eval.every_n_epochs", 0,
        "--trainer.accelerator", "cpu", "--model.learning_rate", 0.1, "--trainer.accumulate_grad_batches", 1,
        "--data.batch_size", 1, "--model.warmup_steps", 0,
        "--model.base_model", "typst-nano",
    )  # fmt: skip
    assert result.status == 0, result.err
    settings = replace(GREEDY, max_tokens=120)
    alone = {
        name: Generator.load(path, settings=settings, compile=False).generate_one(able_pairs[0]).source
        for name, path in (("house", able_adapter), ("other", other))
    }
    both = Generator.load({"house": able_adapter, "other": other}, settings=settings, compile=False)
    assert both.adapters == ["house", "other"]
    for name in ("other", "house", "other"):
        assert both.generate_one(able_pairs[0], name).source == alone[name]
    assert both.generate_one(able_pairs[0]).source == alone["house"] != alone["other"]
    with pytest.raises(UserError, match="no adapter 'third'; there is: house, other"):
        both.generate_one(able_pairs[0], "third")


FIELDS = {
    "starting_page": 1, "academic_year": "2025-26", "department": "Tests", "project_title": "T", "contents_txt": "A b c"
}  # fmt: skip


def tries(tokenizer: Any, typesetter: Typesetter, most: int) -> Attempts:
    (prompt,) = Encoder(tokenizer, ReportPrompt()).prompts([FIELDS])
    return Attempts(prompt, FIELDS, FIELDS["contents_txt"], GREEDY, typesetter, most)  # type: ignore[arg-type]


def test_another_attempt_is_made_until_one_compiles_and_the_best_is_kept(tokenizer) -> None:
    with Typesetter(workers=1) as typesetter:
        attempts = tries(tokenizer, typesetter, 3)
        seeds = [attempts.row().seed]
        assert attempts.judge(Completion("#panic()", 5, "stop", 1.0, 5)) is None
        second = attempts.row()
        seeds.append(second.seed)
        assert second.settings.temperature > 0  # greedy decoding would give the first again
        document = attempts.judge(Completion("A b #x c", 7, "stop", 2.0, 7))
        assert document is not None and document.compiled and document.source == "A b \\#x c"
        assert (document.attempts, document.tokens, document.seconds) == (2, 12, 3.0)
        assert [str(repair) for repair in document.repairs] == ["line 1, column 5: escaped a stray #"]
        assert len({tuple(seed) for seed in seeds}) == 2

        attempts = tries(tokenizer, typesetter, 3)
        for text, reason in (("A", "length"), ("A b", "length"), ("#panic()", "stop")):
            attempts.row()
            document = attempts.judge(Completion(text, 1, reason, 0.1, 1))
        assert document is not None and document.source == "A b" and document.finish_reason == "length"
        assert document.attempts == 3 and document.fidelity == pytest.approx(2 / 3)


def test_what_goes_wrong_with_a_record_is_its_own_answer(tiny_model, able_pairs) -> None:
    settings = GenerationSettings(max_tokens=20, temperature=1.5)
    generator = Generator.load(None, tiny_model, use_4bit=False, settings=settings, compile=False)
    records = [pair["input"] for pair in able_pairs]
    expected = {place: document.source for place, document in generator.generate(records)}
    (cursed,) = generator.encoder().prompts([records[2]])
    decoder: Any = generator.engine._decoder
    step, sizes = decoder.step, []

    def failing() -> None:
        sizes.append(len(decoder.rows))
        if any(row.prompt == cursed and row.output for row in decoder.rows):
            raise RuntimeError("out of everything")
        step()

    add = decoder.add

    def crowded(rows: Any) -> None:
        if decoder.rows and rows[0].prompt == generator.encoder().prompts([records[4]])[0]:
            raise torch.OutOfMemoryError("too little room beside others")
        add(rows)

    decoder.step, decoder.add = failing, crowded
    answers = dict(generator.answers([*records, {"starting_page": 1}, {**records[0], "contents_txt": "w " * 60_000}]))
    assert sorted(answers) == list(range(len(records) + 2))
    assert str(answers.pop(2)) == "out of everything"
    assert "field 'department' is missing" in str(answers.pop(len(records)))
    assert "shorten its text" in str(answers.pop(len(records) + 1))
    assert {place: answer.source for place, answer in answers.items()} == {  # as if nothing had been
        place: source for place, source in expected.items() if place != 2
    }
    assert max(sizes) > 1 and generator.engine.batch_size == 8 and not generator.engine.running
    with pytest.raises(RuntimeError, match="out of everything"):
        list(generator.generate(records))
    decoder.step, decoder.add = step, add
    assert {place: document.source for place, document in generator.generate(records)} == expected


def test_the_functions_of_the_usual_script(able_adapter, able_pairs, tmp_path) -> None:
    model, tokenizer = load_model_and_tokenizer("typst-nano", able_adapter, use_4bit=True)
    source = inference_from_dict(model, tokenizer, able_pairs[0]["input"])
    assert isinstance(source, str) and "#" in source
    records = tmp_path / "records.json"
    records.write_text(json.dumps([{"input": able_pairs[0]["input"]}]))
    written = inference_from_json_file(model, tokenizer, records, tmp_path / "out" / "documents.json")
    assert [each["input"] for each in written] == [able_pairs[0]["input"]]
    assert written[0]["generated_output"]
    with pytest.raises(UserError, match="field 'department' is missing"):
        inference_from_dict(model, tokenizer, {"project_title": "x"})


def test_generate_writes_documents_in_order_and_goes_on_where_it_stopped(
    run, able_adapter, able_pairs, tmp_path
) -> None:
    records, output = tmp_path / "records.json", tmp_path / "out" / "documents.json"
    records.write_text(json.dumps([{"input": each["input"]} for each in able_pairs[:3]]))
    command = [
        "generate", "--input", records, "--model", able_adapter, "--output", output, "--temperature", 0,
        "--repetition-penalty", 1, "--max-tokens", 1200, "--pdf",
    ]  # fmt: skip
    result = run(*command)
    assert result.status == 0, result.err
    written = json.loads(output.read_text())
    assert [each["input"] for each in written] == [each["input"] for each in able_pairs[:3]]
    assert all(each["compiled"] for each in written)
    typs, pdfs = sorted(output.parent.glob("*.typ")), sorted(output.parent.glob("*.pdf"))
    assert [path.stem for path in typs] == [path.stem for path in pdfs] and len(pdfs) == 3
    assert [path.read_text() for path in typs] == [each["generated_output"] for each in written]
    assert all(path.read_bytes().startswith(b"%PDF") for path in pdfs)

    kept = {**written[1], "tokens": -1}  # a mark: it must not be made again
    output.write_text(json.dumps([kept], indent=1))
    again = run(*command)
    assert again.status == 0 and "1 of 3 documents are there already" in again.err
    rewritten = json.loads(output.read_text())
    assert rewritten[1] == kept
    assert [each["generated_output"] for each in rewritten] == [each["generated_output"] for each in written]

    records.write_text(json.dumps([able_pairs[5]["input"]]))
    refused = run(*command)
    assert refused.status == 1 and "results of other records" in refused.err
    assert json.loads(output.read_text()) == rewritten

    records.write_text(json.dumps([able_pairs[0]["input"]]))
    other = [*command, "--seed", 7, "--max-tokens", 6]
    refused = run(*other)
    assert refused.status == 1 and "other settings (generation.max_tokens, generation.seed)" in refused.err
    assert "--overwrite" in refused.err and json.loads(output.read_text()) == rewritten
    assert run(*other, "--overwrite").status == 0
    assert [each["tokens"] for each in json.loads(output.read_text())] == [6]


def test_generate_prints_and_reads_standard_input(run, able_adapter, able_pairs, monkeypatch) -> None:
    bare = json.dumps(able_pairs[0]["input"]).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bare)))
    result = run("generate", "--input", "-", "--model", able_adapter, "--max-tokens", 5, "--no-compile", "--no-4bit")
    assert result.status == 0, result.err
    (document,) = json.loads(result.out)
    assert document["finish_reason"] == "length" and document["tokens"] == 5 and "compiled" not in document
    assert "cut off at the token limit: raise --max-tokens" in result.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--temperature", "3"], "temperature must be from 0 to 2, not 3.0"),
        (["--top-p", "0"], "top_p must be above 0"),
        (["--max-tokens", "0"], "max_tokens must be 1 or more"),
        (["--attempts", "0"], "--attempts must be 1 or more"),
        (["--repetition-penalty", "0.5"], "repetition_penalty must be from 1 to 2"),
        (["--model", "nowhere"], "nowhere: no adapter there"),
        (["--base-model", "no/where"], "no/where could not be loaded"),
        ([], "name one with --model or --base-model"),
        (["--base-model", "x", "--output", "a.txt"], "must be a .json file"),
        (["--base-model", "x", "--pdf", "--no-compile"], "--pdf needs the documents compiled"),
        (["--model", "a", "b"], "several adapters need a name each"),
        (["--tempratur", "1"], "Did you mean --temperature"),
    ],
)
def test_wrong_flags_name_the_way_out(run, tmp_path, able_pairs, flags, told) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps(able_pairs[0]["input"]))
    result = run("generate", "--input", records, *flags)
    assert result.status != 0 and told in result.err and "Traceback" not in result.err


def test_wrong_input_names_file_record_and_field(run, tmp_path, able_pairs, tiny_model) -> None:
    result = run("generate", "--input", tmp_path / "none.json", "--base-model", tiny_model, "--no-4bit")
    assert result.status == 1 and "none.json: there is no such file" in result.err
    records = tmp_path / "my-records.json"
    records.write_text(json.dumps([able_pairs[0]["input"], {**able_pairs[1]["input"], "starting_page": "one"}]))
    result = run("generate", "--input", records, "--base-model", tiny_model, "--no-4bit")
    assert result.status == 1
    assert f"{records}, record 1" in result.err and "field 'starting_page'" in result.err


def test_an_adapter_for_another_base_is_refused_by_name(run, able_adapter, tiny_model, tmp_path, able_pairs) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps(able_pairs[0]["input"]))
    result = run("generate", "--input", records, "--model", able_adapter, "--base-model", tiny_model, "--no-4bit")
    assert result.status == 1 and "made for" in result.err and "--base-model" in result.err


def test_greedy_generation_with_the_adapter_of_a_run_directory(generator, able_adapter) -> None:
    assert Path(able_adapter, "adapter", "best", "adapter_config.json").is_file()
    assert generator.adapters == ["default"]
