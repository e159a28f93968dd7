"""`generate --engine vllm`: the contract that it prompts, stops and samples as the built-in engine does.

What goes to vLLM is checked without it; how its answers are read, with a stand-in in the form of vLLM's engine, which
decodes with ours. The last test needs vLLM itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from typst_lit.errors import UserError
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.inference.backends import vllm as on_vllm
from typst_lit.inference.decoder import Decoder, eos_token_ids
from typst_lit.inference.generator import GenerationFailure, Generator
from typst_lit.inference.loading import resolve_model, validate_model
from typst_lit.inference.prompt_lookup import DraftCorpus
from typst_lit.inference.request import Request
from typst_lit.inference.sampling import GenerationSettings, document_seed
from typst_lit.model.adapters import adapter_directory
from typst_lit.model.backbones import path_or_name

SETTINGS = GenerationSettings(max_tokens=40, temperature=0.4, top_p=0.9, top_k=7, repetition_penalty=1, seed=5)


def by_index(documents: Iterable[GeneratedDocument]) -> dict[int, GeneratedDocument]:
    return {document.index: document for document in documents}


def test_every_setting_reaches_vllm_as_it_is() -> None:
    prompt = [3, 1, 4]
    made = on_vllm.sampling(Request(prompt, SETTINGS, document_seed(5, prompt)), {9, 2})
    assert (made["temperature"], made["top_p"], made["top_k"], made["max_tokens"]) == (0.4, 0.9, 7, 40)
    assert made["stop_token_ids"] == [2, 9]
    assert "repetition_penalty" not in made  # 1 is vLLM's default, and nothing else is taken
    known = {"max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "prompt_lookup"}
    assert {field.name for field in fields(GenerationSettings)} == known  # a new one needs a place in vLLM, too

    # a document's random numbers are its own, the same each time, and other ones at a second attempt
    seeds = [
        document_seed(5, prompt),
        document_seed(5, prompt),
        document_seed(5, prompt, 1),
        document_seed(6, prompt),
        document_seed(5, [1]),
    ]
    drawn = [on_vllm.sampling(Request(prompt, SETTINGS, seed), {2})["seed"] for seed in seeds]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4 and all(0 <= seed < 2**63 for seed in drawn)


def test_a_penalty_that_would_count_the_record_is_refused() -> None:
    with pytest.raises(UserError, match="--repetition-penalty 1"):
        on_vllm.sampling(Request([1], replace(SETTINGS, repetition_penalty=1.1), 0), {2})


def test_the_model_is_asked_for_as_it_is_loaded_here() -> None:
    made = on_vllm.engine_arguments("Qwen/Qwen3-1.7B", [16, 24], True, True, 8)
    assert made["model"] == "Qwen/Qwen3-1.7B" and made["quantization"] == "bitsandbytes" and made["max_num_seqs"] == 8
    assert made["enable_lora"] and made["max_lora_rank"] == 32
    assert made["speculative_config"]["method"] == "ngram"
    plain = on_vllm.engine_arguments("Qwen/Qwen3-1.7B", [], False, False, 8)
    assert not {"quantization", "enable_lora", "speculative_config"} & plain.keys()


def test_documents_end_where_the_built_in_engine_ends_them(tiny_model) -> None:
    for base in ("typst-nano", str(tiny_model)):
        built_in = Generator.load(None, base, use_4bit=False, compile=False)
        spec = resolve_model(None, base, use_4bit=False)
        config = on_vllm.generation_config(path_or_name(base), validate_model(spec))
        model: Any = built_in.model
        tokenizer = built_in.tokenizer
        assert eos_token_ids(config, tokenizer) == eos_token_ids(model.generation_config, tokenizer) != []


def test_without_vllm_the_way_out_is_named(run, tmp_path, tiny_model, able_pairs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    records = tmp_path / "records.json"
    records.write_text(json.dumps(able_pairs[0]["input"]))
    command = ["generate", "--engine", "vllm", "--base-model", tiny_model, "--no-4bit", "--input", records]
    result = run(*command)
    assert result.status == 1 and "give --repetition-penalty 1" in result.err
    result = run(*command, "--repetition-penalty", 1)
    assert result.status == 1 and "pip install 'typst-lit[vllm]'" in result.err


@dataclass
class StandIn:
    """An engine of vLLM's form (0.33), which decodes with the built-in decoder. It is not vLLM."""

    decoder: Decoder

    def __post_init__(self) -> None:
        self.rows: dict[str, Request] = {}
        self.asked: list[Any] = []

    def add_request(self, name: str, prompt: dict[str, Any], params: Any, lora_request: Any = None) -> str:
        self.asked.append((prompt["prompt_token_ids"], params, lora_request))
        settings = GenerationSettings(params.max_tokens, params.temperature, params.top_p, params.top_k, 1)
        self.rows[name] = Request(prompt["prompt_token_ids"], settings, params.seed)
        self.decoder.add([self.rows[name]])
        return name

    def step(self) -> list[Any]:
        self.decoder.step()
        ended = {name: row for name, row in self.rows.items() if row.finish_reason}
        for name in ended:
            del self.rows[name]
        end = min(self.decoder.eos_token_ids)
        return [
            SimpleNamespace(
                request_id=name,
                finished=True,
                outputs=[
                    SimpleNamespace(
                        token_ids=[*row.output, *[end] * (row.finish_reason == "stop")],
                        finish_reason=row.finish_reason,
                    )
                ],
            )
            for name, row in ended.items()
        ]

    def abort_request(self, names: list[str]) -> None:
        self.decoder.remove([self.rows.pop(name) for name in names])


@pytest.fixture
def form_of_vllm(monkeypatch) -> None:
    """The names that are imported from vLLM, as bare holders of values."""
    names = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda name, number, path: (name, number, path)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final")},
    }
    for name, held in names.items():
        module = ModuleType(name)
        module.__dict__.update(held)
        monkeypatch.setitem(sys.modules, name, module)


def test_answers_are_read_as_the_built_in_engine_reads_its_own(able_adapter, able_pairs, form_of_vllm) -> None:
    settings = GenerationSettings(max_tokens=1200, temperature=0, repetition_penalty=1)
    built_in = Generator.load(able_adapter, use_4bit=False, settings=settings, compile=False)
    records = [pair["input"] for pair in able_pairs[:3]]
    expected = by_index(built_in.generate(records))
    model: Any = built_in.model
    ends = eos_token_ids(model.generation_config, built_in.tokenizer)
    engine = StandIn(Decoder(model, ends, DraftCorpus()))
    directory = adapter_directory(able_adapter)
    decoder = on_vllm.VllmDecoder(engine, ends, model.config.max_position_embeddings, {"default": directory})
    over_vllm = Generator(
        decoder, built_in.tokenizer, built_in.templates, settings, batch_size=2
    )  # fmt: skip
    made = by_index(over_vllm.generate(records))
    for place, document in expected.items():
        assert made[place].source == document.source
        assert (made[place].finish_reason, made[place].tokens) == (document.finish_reason, document.tokens)
    assert {document.finish_reason for document in made.values()} == {"stop"}
    prompts = built_in.encoder().prompts(records)
    assert sorted(asked[0] for asked in engine.asked) == sorted(map(list, prompts))
    assert {asked[2] for asked in engine.asked} == {("default", 1, str(directory))}

    (failure,) = over_vllm.results([{**records[0], "contents_txt": "word " * 60_000}])
    assert isinstance(failure, GenerationFailure) and "Shorten the record" in str(failure.error)
    half = over_vllm.generate(records)
    next(half)
    half.close()  # those that are under way are given up, there too
    assert over_vllm.generate_one(records[0]).source == expected[0].source and not engine.rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM needs a GPU, and there is none")
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: pip install 'typst-lit[vllm]'")
def test_vllm_writes_what_the_built_in_engine_writes(able_adapter, able_pairs) -> None:
    records = [pair["input"] for pair in able_pairs[:3]]
    settings = GenerationSettings(max_tokens=1200, temperature=0, repetition_penalty=1)
    expected = by_index(Generator.load(able_adapter, use_4bit=False, settings=settings).generate(records))
    generator = Generator.load(able_adapter, use_4bit=False, settings=settings, engine="vllm")
    made = by_index(generator.generate(records))
    for place, document in expected.items():  # 16-bit rounding may tip a choice, so not by the letter
        assert made[place].finish_reason == document.finish_reason == "stop"
        assert made[place].fidelity == pytest.approx(document.fidelity, abs=0.1)
    generator.settings = replace(settings, max_tokens=5)
    assert {document.tokens for document in generator.generate(records)} == {5}
    generator.settings = replace(settings, temperature=1, seed=3, max_tokens=60)
    first, second = (by_index(generator.generate(records))[0].source for _ in range(2))
    assert first == second
