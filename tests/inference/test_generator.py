"""Generating documents in Python and with `typst-lit generate`, with a model that is able to."""

from __future__ import annotations

import io
import json
import logging
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import SAMPLES
from typst_lit.contract import TextContract
from typst_lit.data.encoding import Encoder
from typst_lit.data.prompts import ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference import inference_from_dict, inference_from_json_file, load_model_and_tokenizer
from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.inference.generator import Generator
from typst_lit.inference.guide import _generator
from typst_lit.inference.request import Completion
from typst_lit.inference.settings import GenerationSettings
from typst_lit.inference.summary import DocumentCounts, describe
from typst_lit.typesetting.typesetter import Typesetter

GREEDY = GenerationSettings(temperature=0, repetition_penalty=1, max_tokens=1200)


@pytest.fixture(scope="module")
def generator(able_adapter) -> Generator:
    return Generator.load(able_adapter, settings=GREEDY)


def test_a_document_is_compiled_and_describes_itself(generator, able_pairs) -> None:
    document = generator.generate_one(able_pairs[0])
    assert document.compiled and document.finish_reason == "stop" and document.attempts == 1
    assert document.fidelity > 0.9
    assert document.input == able_pairs[0]["input"]
    result = json.loads(json.dumps(document.to_json()))
    assert result["generated_output"] == document.source and result["pages"] == document.result.page_count > 0
    assert {"compiled", "attempts", "repairs", "finish_reason", "tokens", "seconds"} <= result.keys()


def test_a_document_depends_on_the_seed_and_not_on_batch_or_order(able_adapter, able_pairs) -> None:
    records = able_pairs[:3]
    sources = {}
    for size, order in ((1, records), (3, records[::-1])):
        settings = GenerationSettings(max_tokens=150, seed=5, temperature=2, top_k=0, top_p=1)
        generator = Generator.load(able_adapter, use_4bit=False, settings=settings, batch_size=size, compile=False)
        documents = list(generator.generate(order))
        assert all(document.input == order[document.index]["input"] for document in documents)
        sources[size] = {document.input["contents_txt"]: document.source for document in documents}
    assert sources[1] == sources[3] and len(set(sources[1].values())) == 3
    other = Generator.load(
        able_adapter,
        use_4bit=False,
        settings=GenerationSettings(max_tokens=150, seed=6, temperature=2, top_k=0, top_p=1),
        compile=False,
    )
    assert other.generate_one(records[0]).source != sources[1][records[0]["input"]["contents_txt"]]


def test_merged_and_unmerged_adapters_agree(able_adapter, able_pairs) -> None:
    settings = replace(GREEDY, max_tokens=200)
    apart = Generator.load(able_adapter, use_4bit=False, settings=settings)
    merged = Generator.load(able_adapter, use_4bit=False, merge=True, settings=settings)
    assert apart.generate_one(able_pairs[0]).source == merged.generate_one(able_pairs[0]).source
    with pytest.raises(UserError, match=r"`model\.use_4bit=false`"):
        Generator.load(able_adapter, merge=True)


def test_several_adapters_are_used_by_name_on_one_base_model(able_adapter, tmp_path, run, able_pairs) -> None:
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


CONTRACT = TextContract(num_pairs=3, typst_version="0.15.2", min_fidelity=0.9)


def make_attempts(
    tokenizer: Any, typesetter: Typesetter | None, max_attempts: int, contract: TextContract | None = None
) -> Attempts:
    (prompt,) = Encoder(tokenizer, ReportPrompt()).prompts([FIELDS])
    return Attempts(prompt, FIELDS, "contents_txt", GREEDY, typesetter, max_attempts, contract=contract)


def finish_all(attempts: Attempts, *completions: Completion) -> GeneratedDocument:
    """Returns the document of attempts that end with these completions, of which only the last is the last one."""
    document = None
    for completion in completions:
        assert document is None
        attempts.next_request()
        document = attempts.finish(completion)
    assert document is not None
    return document


def test_a_document_is_attempted_until_it_compiles_and_the_best_attempt_counts(tokenizer) -> None:
    with Typesetter(workers=1) as typesetter:
        attempts = make_attempts(tokenizer, typesetter, 3)
        seeds = [attempts.next_request().seed]
        assert attempts.finish(Completion("#panic()", 5, "stop", 1.0, 5)) is None
        second = attempts.next_request()
        seeds.append(second.seed)
        assert second.settings.temperature > 0  # greedy decoding would give the first again
        document = attempts.finish(Completion("A b #x c", 7, "stop", 2.0, 7))
        assert document is not None and document.compiled and document.source == "A b \\#x c"
        assert (document.attempts, document.tokens, document.seconds) == (2, 12, 3.0)
        assert [str(repair) for repair in document.repairs] == ["line 1, column 5: escaped a stray #"]
        assert len({tuple(seed) for seed in seeds}) == 2

        attempts = make_attempts(tokenizer, typesetter, 3)
        for text, reason in (("A", "length"), ("A b", "length"), ("#panic()", "stop")):
            attempts.next_request()
            document = attempts.finish(Completion(text, 1, reason, 0.1, 1))
        assert document is not None and document.source == "A b" and document.finish_reason == "length"
        assert document.attempts == 3 and document.fidelity == pytest.approx(2 / 3)


def test_with_a_contract_a_document_is_attempted_until_it_is_clean(tokenizer) -> None:
    text = "2025-26 Tests T A b c"
    repaired, invented, lost = (
        Completion(source, 5, "stop", 1.0, 5, rollbacks=2)
        for source in (f"{text} #x", f"{text} cats dogs", text.removesuffix("c"))
    )
    clean = Completion(text, 5, "stop", 1.0, 5)
    with Typesetter(workers=1) as typesetter:
        document = finish_all(make_attempts(tokenizer, typesetter, 9, CONTRACT), invented, lost, clean)
        assert document.clean and document.source == text and document.attempts == 3 and document.rollbacks == 4
        assert (
            describe(document) == "record 0: 15 tokens, 3.0 s, 3 attempts, 4 rollbacks, 1 page, fidelity 1.000, clean"
        )
        result = document.to_json()
        assert (result["clean"], result["missing_lines"], result["invented_words"]) == (True, [], [])
        assert result["rollbacks"] == 4

        document = finish_all(make_attempts(tokenizer, typesetter, 2, CONTRACT), lost, invented)
        assert document.clean is False and document.source == invented.text  # its fidelity is higher
        assert describe(document).endswith("fidelity 1.000, not clean: invented: cats, dogs")
        assert document.to_json()["invented_words"] == ["cats", "dogs"]
        document = finish_all(make_attempts(tokenizer, typesetter, 2, CONTRACT), invented, lost)
        assert document.source == invented.text
        document = finish_all(make_attempts(tokenizer, typesetter, 1, CONTRACT), lost)
        assert document.missing_lines == ("A b c",) and document.problems == ('1 line missing: "A b c"',)
        document = finish_all(
            make_attempts(tokenizer, typesetter, 2, CONTRACT), repaired, Completion("A", 1, "length", 1, 1)
        )
        assert document.clean is False and document.problems[0].startswith("repaired: line 1, column 23")
        failed = finish_all(make_attempts(tokenizer, typesetter, 1, CONTRACT), Completion("#panic()", 5, "stop", 1, 5))
        assert failed.clean is False and failed.missing_lines is failed.invented_words is None
        assert "not clean: does not compile: line 1" in describe(failed)

        unknown = finish_all(
            make_attempts(tokenizer, typesetter, 3), repaired
        )  # without a contract, compiling is enough
        assert unknown.clean is None and unknown.attempts == 1 and "clean" not in describe(unknown)
        assert unknown.to_json()["clean"] is None
        prompt_only = Attempts([1, 2], {}, "", GREEDY, typesetter, 3, contract=CONTRACT)
        assert finish_all(prompt_only, invented).clean is None
    source_only = finish_all(make_attempts(tokenizer, None, 3, CONTRACT), clean)
    assert source_only.clean is source_only.missing_lines is None and "clean" not in source_only.to_json()


def test_an_attempt_that_went_wrong_never_counts(tokenizer) -> None:
    abandoned = Completion("2025-26 Tests T A b c", 5, "abandoned", 1.0, 5)
    with Typesetter(workers=1) as typesetter:
        attempts = make_attempts(tokenizer, typesetter, 2, CONTRACT)
        assert attempts.next_request().may_abandon
        assert attempts.finish(abandoned) is None
        assert not attempts.next_request().may_abandon  # none follows
        document = attempts.finish(Completion("A b", 5, "length", 1.0, 5, contract_abandoned=True))
        assert document is not None and document.source == "A b" and document.finish_reason == "length"
        assert document.to_json()["contract_abandoned"] and "text contract abandoned" in describe(document)
        streamed = make_attempts(tokenizer, typesetter, 2, CONTRACT)
        assert not streamed.next_request(on_text=lambda text: None).may_abandon


def test_counts_of_clean_documents_are_logged(caplog) -> None:
    caplog.set_level(logging.INFO, "typst_lit")
    DocumentCounts(3, clean=3).log_summary()
    assert caplog.messages == ["3 of 3 documents are clean."]
    caplog.clear()
    DocumentCounts(5, not_compiled=1, clean=3, not_clean=2).log_summary()
    assert caplog.messages == [
        "3 of 5 documents are clean.",
        "1 of 5 documents do not compile.",
        "What may help: `attempts=3`, more training.",
    ]
    caplog.clear()
    DocumentCounts(5, clean=3, not_clean=2).log_summary(max_attempts=3, temperature=0.7)
    assert caplog.messages[1] == "What may help: `generation.temperature=0`, more training."
    caplog.clear()
    DocumentCounts(5).log_summary()
    assert not caplog.messages


def test_an_error_of_one_record_leaves_the_others_as_they_are(tiny_model, able_pairs) -> None:
    settings = GenerationSettings(max_tokens=20, temperature=1.5)
    generator = Generator.load(None, str(tiny_model), use_4bit=False, settings=settings, compile=False)
    records = [pair["input"] for pair in able_pairs]
    expected = {document.index: document.source for document in generator.generate(records)}
    prompts = generator.encoder().prompts(records)
    decoder: Any = generator.engine.decoder
    step, add, sizes = decoder.step, decoder.add, []

    def failing_step() -> None:
        sizes.append(len(decoder.requests))
        if any(request.prompt == prompts[2] and request.output for request in decoder.requests):
            raise RuntimeError("injected")
        step()

    def failing_add(requests: Any) -> None:
        if decoder.requests and requests[0].prompt == prompts[4]:
            raise torch.OutOfMemoryError("injected, next to others")
        add(requests)

    decoder.step, decoder.add = failing_step, failing_add
    invalid, too_long = {"starting_page": 1}, {**records[0], "contents_txt": "w " * 60_000}
    results = {result.index: result for result in generator.results([*records, invalid, too_long])}
    assert sorted(results) == list(range(len(records) + 2))
    failures = {index: str(results.pop(index).error) for index in (2, len(records), len(records) + 1)}
    assert failures[2] == "injected"
    assert "field 'department' is missing" in failures[len(records)]
    assert "Shorten the record's text" in failures[len(records) + 1]
    assert {index: result.source for index, result in results.items()} == {
        index: source for index, source in expected.items() if index != 2
    }
    assert max(sizes) > 1 and not generator.engine.num_running
    with pytest.raises(RuntimeError, match="injected") as raised:  # which keeps the frames of the generator
        list(generator.generate(records))
    assert raised and not generator.engine.num_running and not generator.engine.num_waiting and not decoder.requests
    decoder.step, decoder.add = step, add
    assert {document.index: document.source for document in generator.generate(records)} == expected


def test_a_file_is_written_without_iterating_over_anything(tiny_model, able_pairs, tmp_path) -> None:
    settings = GenerationSettings(max_tokens=5)
    generator = Generator.load(None, str(tiny_model), use_4bit=False, settings=settings, compile=False)
    records, output, seen = tmp_path / "records.json", tmp_path / "documents.json", []
    inputs = [able_pairs[index]["input"] for index in (0, 1, 0)]  # one of them twice
    records.write_text(json.dumps(inputs))
    results = generator.generate_file(records, output, on_document=seen.append)
    assert results == json.loads(output.read_text()) and [result["input"] for result in results] == inputs
    assert sorted(document.index for document in seen) == [0, 1]
    assert {document.origin for document in seen} == {f"{records}, record {index} (line 1)" for index in range(2)}
    assert generator.generate_file(records, output, on_document=seen.append) == results and len(seen) == 2
    generator.settings = GenerationSettings(max_tokens=6)
    with pytest.raises(UserError, match=r"different settings \(generation.max_tokens\).*`overwrite=true`"):
        generator.generate_file(records, output)


def test_an_abandoned_iteration_leaves_nothing_running(able_adapter, able_pairs) -> None:
    with Typesetter(workers=1) as typesetter:
        generator = Generator.load(able_adapter, use_4bit=False, settings=GREEDY, typesetter=typesetter)
        documents = generator.generate(able_pairs)
        next(documents)
        documents.close()
        engine: Any = generator.engine
        assert engine.num_running == engine.num_waiting == 0 and not engine.decoder.requests
        assert generator._compilers._work_queue.empty()


def test_the_functions_of_the_common_script(able_adapter, able_pairs, tmp_path, capfd) -> None:
    capfd.readouterr()
    model, tokenizer = load_model_and_tokenizer("typst-nano", able_adapter, use_4bit=True)
    assert "it/s" not in capfd.readouterr().err  # no progress bars
    source = inference_from_dict(model, tokenizer, able_pairs[0]["input"])
    assert isinstance(source, str) and "#" in source
    records = tmp_path / "records.json"
    records.write_text(json.dumps([{"input": able_pairs[0]["input"]}]))
    written = inference_from_json_file(model, tokenizer, records, tmp_path / "out" / "documents.json")
    assert [result["input"] for result in written] == [able_pairs[0]["input"]]
    assert written[0]["generated_output"]
    with pytest.raises(UserError, match="field 'department' is missing"):
        inference_from_dict(model, tokenizer, {"project_title": "x"})


def test_the_template_of_a_wrapped_model_is_found_or_its_absence_is_reported(able_adapter, able_pairs, caplog) -> None:
    record = able_pairs[0]["input"]
    model, tokenizer = load_model_and_tokenizer("typst-nano", able_adapter, use_4bit=False)
    loaded = _generator(model, tokenizer)
    wrapped: Any = torch.compile(model)
    assert _generator(wrapped, tokenizer).provenance() == loaded.provenance()
    assert _generator(model.merge_and_unload(), tokenizer).identity == loaded.identity
    assert "template" not in caplog.text

    base, plain_tokenizer = load_model_and_tokenizer("typst-nano", use_4bit=False)
    assert isinstance(inference_from_dict(base, plain_tokenizer, record), str) and "template" not in caplog.text
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    assert _generator(adapted, plain_tokenizer).adapters == []
    assert "prompt template that the model's adapter was trained with is not known" in caplog.text


def test_generate_writes_documents_in_order_and_resumes(run, able_adapter, able_pairs, tmp_path) -> None:
    records, output = tmp_path / "records.json", tmp_path / "out" / "documents.json"
    records.write_text(json.dumps([{"input": pair["input"]} for pair in able_pairs[:3]]))
    command = [
        "generate", "--input", records, "--model", able_adapter, "--output", output, "--temperature", 0,
        "--repetition-penalty", 1, "--max-tokens", 1200, "--pdf",
    ]  # fmt: skip
    result = run(*command)
    assert result.status == 0, result.err
    written = json.loads(output.read_text())
    assert [result["input"] for result in written] == [pair["input"] for pair in able_pairs[:3]]
    assert all(result["compiled"] for result in written)
    typs, pdfs = sorted(output.parent.glob("*.typ")), sorted(output.parent.glob("*.pdf"))
    assert [path.stem for path in typs] == [path.stem for path in pdfs] and len(pdfs) == 3
    assert [path.read_text() for path in typs] == [result["generated_output"] for result in written]
    assert all(path.read_bytes().startswith(b"%PDF") for path in pdfs)

    kept = {**written[1], "tokens": -1}  # a mark: it must not be generated again
    output.write_text(json.dumps([kept], indent=1))
    again = run(*command)
    assert again.status == 0 and "1 of 3 documents already exist" in again.err
    rewritten = json.loads(output.read_text())
    assert rewritten[1] == kept
    assert [result["generated_output"] for result in rewritten] == [result["generated_output"] for result in written]

    records.write_text(json.dumps([able_pairs[5]["input"]]))
    refused = run(*command)
    assert refused.status == 1 and "results of other records" in refused.err
    assert json.loads(output.read_text()) == rewritten

    records.write_text(json.dumps([able_pairs[0]["input"]]))
    other = [*command, "--seed", 7, "--max-tokens", 6]
    refused = run(*other)
    assert refused.status == 1 and "different settings (generation.max_tokens, generation.seed)" in refused.err
    assert "--overwrite" in refused.err and json.loads(output.read_text()) == rewritten
    assert run(*other, "--overwrite").status == 0
    assert [result["tokens"] for result in json.loads(output.read_text())] == [6]


def test_generate_says_which_documents_are_clean_and_why_others_are_not(
    run, contract_adapter, able_pairs, tmp_path
) -> None:
    records, output = tmp_path / "records.json", tmp_path / "documents.json"
    records.write_text(json.dumps([pair["input"] for pair in able_pairs[:3]]))
    command = ["generate", "--input", records, "--model", contract_adapter, "--output", output, "--temperature", 0]
    result = run(*command, "--repetition-penalty", 1, "--max-tokens", 1200)
    assert result.status == 0, result.err
    documents = json.loads(output.read_text())
    for index, document in enumerate(documents):
        assert document["clean"] == (
            document["compiled"]
            and not document["repairs"]
            and document["finish_reason"] == "stop"
            and not document["invented_words"]
            and document["fidelity"] >= 0.9
        )
        line = next(line for line in result.err.splitlines() if f"record {index}: " in line)
        assert f"fidelity {document['fidelity']:.3f}" in line
        assert line.startswith("warning: ") == ("not clean: " in line) == (not document["clean"])
    num_clean = sum(document["clean"] for document in documents)
    assert num_clean and f"{num_clean} of 3 documents are clean." in result.err
    cut = run(*command, "--max-tokens", 9, "--overwrite")
    assert "warning: 0 of 3 documents are clean." in cut.err and "cut off at the token limit: raise --max" in cut.err


def test_invalid_records_are_skipped_on_request_and_have_their_errors_as_results(
    run, able_adapter, able_pairs, tmp_path
) -> None:
    records, output = tmp_path / "records.json", tmp_path / "documents.json"
    valid = able_pairs[0]["input"]
    invalid = {**valid, "starting_page": "one", "department": "\ud800"}
    records.write_text(json.dumps([invalid, {"input": valid}, 5, {**valid, "starting_page": math.nan}]))
    command = ["generate", "--input", records, "--model", able_adapter, "--output", output, "--max-tokens", 8]
    refused = run(*command)
    assert refused.status == 1 and not output.exists()
    assert "record 0" in refused.err and "record 2" in refused.err and "record 3" in refused.err
    result = run(*command, "--on-invalid", "skip", "--typ-dir", tmp_path / "typ")
    assert result.status == 0, result.err
    assert "are skipped" in result.err and "starting_page" in result.err and "1 document in" in result.err
    first, document, second, third = json.loads(output.read_text())
    assert first["input"] == invalid and "starting_page" in first["error"]
    assert document["input"] == valid and document["tokens"] == 8
    assert second["input"] == {"value": 5} and second["error"]
    assert "nan" in third["input"]["value"] and third["error"]
    assert [path.name[:4] for path in sorted((tmp_path / "typ").glob("*.typ"))] == ["0001"]
    before = output.read_bytes()
    again = run(*command, "--on-invalid", "skip")
    assert again.status == 0 and "4 of 4 documents already exist" in again.err
    assert output.read_bytes() == before


def test_records_and_output_are_checked_before_torch_is_imported(able_adapter, able_pairs, tmp_path) -> None:
    records, foreign = tmp_path / "records.json", tmp_path / "foreign.json"
    records.write_text(json.dumps({**able_pairs[0]["input"], "starting_page": "one"}))
    valid = tmp_path / "valid.json"
    valid.write_text(json.dumps(able_pairs[0]["input"]))
    foreign.write_text("[1, 2]")
    for input_file, output in ((records, tmp_path / "documents.json"), (valid, foreign)):
        program = (
            "import sys\nfrom typst_lit.cli import main\n"
            f"status = main(['generate', '--model', {str(able_adapter)!r}, '--input', {str(input_file)!r}, "
            f"'--output', {str(output)!r}])\n"
            "print(status, [name for name in ('torch', 'transformers', 'peft', 'datasets') if name in sys.modules])"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert result.stdout == "1 []\n", result.stderr


def test_generate_prints_and_reads_standard_input(run, able_adapter, able_pairs, monkeypatch) -> None:
    bare = json.dumps(able_pairs[0]["input"]).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bare)))
    result = run("generate", "--input", "-", "--model", able_adapter, "--max-tokens", 5, "--no-compile", "--no-4bit")
    assert result.status == 0, result.err
    (document,) = json.loads(result.out)
    assert document["finish_reason"] == "length" and document["tokens"] == 5 and "compiled" not in document
    assert "cut off at the token limit: raise --max-tokens" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "3"], "--temperature: must be from 0 to 2, not 3.0"),
        (["--top-p", "0"], "--top-p: must be above 0"),
        (["--max-tokens", "0"], "--max-tokens: must be 1 or more"),
        (["--attempts", "0"], "--attempts: must be 1 or more"),
        (["--repetition-penalty", "0.5"], "--repetition-penalty: must be from 1 to 2"),
        (["--model", "nowhere"], "nowhere is not a directory"),
        (["--base-model", "no/where"], "no/where could not be loaded"),
        ([], "Name an adapter (--model) or a --base-model"),
        (["--base-model", "x", "--output", "a.txt"], "must be a .json file"),
        (["--base-model", "x", "--pdf", "--no-compile"], "--pdf: needs compiled documents"),
        (["--model", "a", "b"], "several adapters need a name each"),
        (["--tempratur", "1"], "Did you mean --temperature"),
    ],
)
def test_wrong_flags_are_refused_with_a_hint(run, tmp_path, able_pairs, flags, message) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps(able_pairs[0]["input"]))
    result = run("generate", "--input", records, *flags)
    assert result.status != 0 and message in result.err and "Traceback" not in result.err


def test_invalid_input_is_reported_with_file_record_and_field(run, tmp_path, able_pairs, tiny_model) -> None:
    result = run("generate", "--input", tmp_path / "none.json", "--base-model", tiny_model, "--no-4bit")
    assert result.status == 1 and "none.json: no such file" in result.err
    records = tmp_path / "my-records.json"
    records.write_text(json.dumps([able_pairs[0]["input"], {**able_pairs[1]["input"], "starting_page": "one"}]))
    result = run("generate", "--input", records, "--base-model", tiny_model, "--no-4bit")
    assert result.status == 1
    assert f"{records}, record 1" in result.err and "field 'starting_page'" in result.err


def test_an_adapter_for_another_base_model_is_refused_by_name(
    run, able_adapter, tiny_model, tmp_path, able_pairs
) -> None:
    records = tmp_path / "records.json"
    records.write_text(json.dumps(able_pairs[0]["input"]))
    result = run("generate", "--input", records, "--model", able_adapter, "--base-model", tiny_model, "--no-4bit")
    assert result.status == 1 and "does not fit the base model" in result.err and "--base-model" in result.err


def test_greedy_generation_with_the_adapter_of_a_run_directory(generator, able_adapter) -> None:
    assert Path(able_adapter, "adapter", "best", "adapter_config.json").is_file()
    assert generator.adapters == ["default"]
