"""`generate --engine vllm`: it prompts, stops and samples as the built-in engine does.

What vLLM receives is tested without it. How its outputs are read is tested with a fake of vLLM's engine that decodes
with the built-in decoder. The last test needs vLLM itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from typst_lit.errors import UserError
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.inference.backends import vllm as backend
from typst_lit.inference.decoder import Decoder, eos_token_ids
from typst_lit.inference.generator import GenerationFailure, Generator
from typst_lit.inference.loading import validate_model
from typst_lit.inference.model_spec import resolve_model
from typst_lit.inference.request import Request
from typst_lit.inference.sampling import document_seed
from typst_lit.inference.settings import GenerationSettings
from typst_lit.model.locations import adapter_directory, path_or_name

SETTINGS = GenerationSettings(max_tokens=40, temperature=0.4, top_p=0.9, top_k=7, repetition_penalty=1, seed=5)


def by_index(documents: Iterable[GeneratedDocument]) -> dict[int, GeneratedDocument]:
    return {document.index: document for document in documents}


def test_all_settings_are_sent_to_vllm() -> None:
    prompt = [3, 1, 4]
    arguments = backend.sampling_arguments(Request(prompt, SETTINGS, document_seed(5, prompt)), {9, 2})
    sent = (arguments["temperature"], arguments["top_p"], arguments["top_k"], arguments["max_tokens"])
    assert sent == (0.4, 0.9, 7, 40)
    assert arguments["stop_token_ids"] == [2, 9]
    assert "repetition_penalty" not in arguments  # 1 is vLLM's default, and no other value is accepted
    known = {"max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "prompt_lookup"}
    known |= {
        "valid_syntax",
        "checkpoints",
        "contract",
        "deterministic",
    }  # documented as without effect there, and refused
    assert set(SETTINGS.values()) == known  # a new one must be sent to vLLM, too

    # A document's seed is its own, the same each time, and another for a second attempt.
    entropies = [
        document_seed(5, prompt),
        document_seed(5, prompt),
        document_seed(5, prompt, 1),
        document_seed(6, prompt),
        document_seed(5, [1]),
    ]
    seeds = [backend.sampling_arguments(Request(prompt, SETTINGS, entropy), {2})["seed"] for entropy in entropies]
    assert seeds[0] == seeds[1] and len(set(seeds)) == 4 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("setting", "hint"),
    [({"repetition_penalty": 1.1}, "repetition_penalty=1"), ({"deterministic": True}, "deterministic=false")],
)
def test_settings_that_vllm_does_not_support_are_refused(setting, hint) -> None:
    with pytest.raises(UserError, match=f"`generation.{hint}`"):
        backend.sampling_arguments(Request([1], replace(SETTINGS, **setting), 0), {2})


def test_model_is_loaded_with_the_settings_of_the_built_in_engine() -> None:
    arguments = backend.engine_arguments("Qwen/Qwen3-1.7B", [16, 24], True, True, 8)
    assert arguments["model"] == "Qwen/Qwen3-1.7B" and arguments["quantization"] == "bitsandbytes"
    assert arguments["max_num_seqs"] == 8
    assert arguments["enable_lora"] and arguments["max_lora_rank"] == 32
    assert arguments["speculative_config"]["method"] == "ngram"
    plain = backend.engine_arguments("Qwen/Qwen3-1.7B", [], False, False, 8)
    assert not {"quantization", "enable_lora", "speculative_config"} & plain.keys()


def test_eos_tokens_are_those_of_the_built_in_engine(tiny_model) -> None:
    for base in ("typst-nano", str(tiny_model)):
        built_in = Generator.load(None, base, use_4bit=False, compile=False)
        spec = resolve_model(None, base, use_4bit=False)
        config = backend.generation_config(path_or_name(base), validate_model(spec))
        model: Any = built_in.model
        tokenizer = built_in.tokenizer
        assert eos_token_ids(config, tokenizer) == eos_token_ids(model.generation_config, tokenizer) != []


def test_missing_vllm_is_reported_with_its_extra(run, tmp_path, tiny_model, able_pairs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    records = tmp_path / "records.json"
    records.write_text(json.dumps(able_pairs[0]["input"]))
    command = ["generate", "--engine", "vllm", "--base-model", tiny_model, "--no-4bit", "--input", records]
    result = run(*command, "--sampling", "classic")
    assert result.status == 1 and "With --engine vllm, use --repetition-penalty 1" in result.err
    result = run(*command)
    assert result.status == 1 and "pip install 'typst-lit[vllm]'" in result.err


@dataclass
class FakeLLMEngine:
    """Has the interface of vLLM's `LLMEngine` (0.33), and decodes with the built-in decoder."""

    decoder: Decoder

    def __post_init__(self) -> None:
        self.running: dict[str, Request] = {}
        self.received: list[Any] = []

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Any, lora_request: Any = None) -> str:
        self.received.append((prompt["prompt_token_ids"], params, lora_request))
        settings = GenerationSettings(params.max_tokens, params.temperature, params.top_p, params.top_k, 1)
        self.running[request_id] = Request(prompt["prompt_token_ids"], settings, params.seed)
        self.decoder.add([self.running[request_id]])
        return request_id

    def step(self) -> list[Any]:
        self.decoder.step()
        finished = {request_id: request for request_id, request in self.running.items() if request.finish_reason}
        for request_id in finished:
            del self.running[request_id]
        eos_token_id = min(self.decoder.eos_token_ids)
        return [
            SimpleNamespace(
                request_id=request_id,
                finished=True,
                outputs=[
                    SimpleNamespace(
                        token_ids=[*request.output, *[eos_token_id] * (request.finish_reason == "stop")],
                        finish_reason=request.finish_reason,
                    )
                ],
            )
            for request_id, request in finished.items()
        ]

    def abort_request(self, request_ids: list[str]) -> None:
        self.decoder.remove([self.running.pop(request_id) for request_id in request_ids])


@pytest.fixture
def fake_vllm(monkeypatch) -> None:
    """Modules with the names that are imported from vLLM."""
    modules = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda name, number, path: (name, number, path)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final")},
    }
    for name, values in modules.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)


def test_documents_are_those_of_the_built_in_engine(able_adapter, able_pairs, fake_vllm) -> None:
    settings = GenerationSettings(max_tokens=1200, temperature=0, repetition_penalty=1)
    built_in = Generator.load(able_adapter, use_4bit=False, settings=settings, compile=False)
    records = [pair["input"] for pair in able_pairs[:3]]
    expected = by_index(built_in.generate(records))
    model: Any = built_in.model
    eos_ids = eos_token_ids(model.generation_config, built_in.tokenizer)
    engine = FakeLLMEngine(Decoder(model, eos_ids))
    directory = adapter_directory(able_adapter)
    decoder = backend.VllmDecoder(engine, eos_ids, model.config.max_position_embeddings, {"default": directory})
    generator = Generator(decoder, built_in.tokenizer, built_in.templates, settings, batch_size=2)
    documents = by_index(generator.generate(records))
    for index, document in expected.items():
        assert documents[index].source == document.source
        assert (documents[index].finish_reason, documents[index].tokens) == (document.finish_reason, document.tokens)
    assert {document.finish_reason for document in documents.values()} == {"stop"}
    prompts = built_in.encoder().prompts(records)
    assert sorted(prompt for prompt, _, _ in engine.received) == sorted(map(list, prompts))
    assert {lora_request for _, _, lora_request in engine.received} == {("default", 1, str(directory))}

    (failure,) = generator.results([{**records[0], "contents_txt": "word " * 60_000}])
    assert isinstance(failure, GenerationFailure) and "Shorten the record" in str(failure.error)
    iterator = generator.generate(records)
    next(iterator)
    iterator.close()  # cancels the others, in vLLM too
    assert generator.generate_one(records[0]).source == expected[0].source and not engine.running


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM needs a GPU")
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: pip install 'typst-lit[vllm]'")
def test_vllm_generates_what_the_built_in_engine_generates(able_adapter, able_pairs) -> None:
    records = [pair["input"] for pair in able_pairs[:3]]
    settings = GenerationSettings(max_tokens=1200, temperature=0, repetition_penalty=1)
    expected = by_index(Generator.load(able_adapter, use_4bit=False, settings=settings).generate(records))
    generator = Generator.load(able_adapter, use_4bit=False, settings=settings, engine="vllm")
    documents = by_index(generator.generate(records))
    for index, document in expected.items():  # 16-bit rounding may change a token, so the sources may differ
        assert documents[index].finish_reason == document.finish_reason == "stop"
        assert documents[index].fidelity == pytest.approx(document.fidelity, abs=0.1)
    generator.settings = replace(settings, max_tokens=5)
    assert {document.tokens for document in generator.generate(records)} == {5}
    generator.settings = replace(settings, temperature=1, seed=3, max_tokens=60)
    first, second = (by_index(generator.generate(records))[0].source for _ in range(2))
    assert first == second
