"""Speculative decoding: the same documents as transformers' own generate, in fewer passes."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
)
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from typst_lit.errors import UserError
from typst_lit.inference.decoder import Decoder, sliding_window
from typst_lit.inference.prompt_lookup import Draft, DraftCorpus
from typst_lit.inference.request import Request
from typst_lit.inference.sampling import top_candidates
from typst_lit.inference.settings import GenerationSettings

GREEDY = GenerationSettings(max_tokens=60, temperature=0, repetition_penalty=1.0)
NO_EOS = -1


@pytest.fixture(scope="module")
def model(tiny_model) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        loaded.model.embed_tokens.weight *= 8  # sharper scores: ties between tokens decide nothing
    return loaded


PROMPTS = [[5, 9, 11, 5, 9], list(range(20, 70)), [7] * 9 + [8], [300, 301, 302, 303, 300, 301], [6]]


def decode(
    model: Any, prompts: Sequence[list[int]], settings: GenerationSettings, eos_token_ids: Sequence[int] = (NO_EOS,)
) -> list[Request]:
    requests = [Request(prompt, settings, [settings.seed, index]) for index, prompt in enumerate(prompts)]
    decoder = Decoder(model, eos_token_ids)
    decoder.add(requests)
    while decoder.requests:
        decoder.step()
    return requests


def reference(model: Any, prompt: list[int], count: int, penalty: float = 1.0) -> list[int]:
    processors = LogitsProcessorList()
    if penalty > 1:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(prompt)))
    output = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None),
        logits_processor=processors,
    )  # fmt: skip
    return output[0].tolist()[-count:]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_what_transformers_gives_in_fewer_passes(model, penalty) -> None:
    settings = replace(GREEDY, repetition_penalty=penalty)
    expected = [reference(model, prompt, 60, penalty) for prompt in PROMPTS]
    plain = decode(model, PROMPTS, replace(settings, prompt_lookup=False))
    drafted = decode(model, PROMPTS, settings)
    assert [request.output for request in plain] == expected
    assert [request.output for request in drafted] == expected
    assert all(request.passes == 60 for request in plain)
    if penalty == 1.0:  # a random model repeats itself, which drafts predict
        assert sum(request.passes for request in drafted) < 30 * len(PROMPTS)


def test_a_document_does_not_depend_on_its_batch_or_on_drafts(model) -> None:
    settings = GenerationSettings(max_tokens=40, temperature=1.0, top_k=20)
    together = [Request(prompt, settings, [1, index]) for index, prompt in enumerate(PROMPTS)]
    decoder = Decoder(model, [NO_EOS])
    decoder.add(together)
    while decoder.requests:
        decoder.step()
    late = [Request(prompt, settings, [1, index]) for index, prompt in enumerate(PROMPTS)]
    decoder = Decoder(model, [NO_EOS])
    for request in reversed(late):  # one joins after the other, while the first ones are under way
        decoder.add([request])
        decoder.step()
        decoder.step()
    while decoder.requests:
        decoder.step()
    without = [
        Request(prompt, replace(settings, prompt_lookup=False), [1, index]) for index, prompt in enumerate(PROMPTS)
    ]
    for request in without:
        decoder.add([request])
        while decoder.requests:
            decoder.step()
    assert (
        [request.output for request in late]
        == [request.output for request in together]
        == [request.output for request in without]
    )
    assert len({tuple(request.output) for request in together}) == len(PROMPTS)
    other_seed = decode(model, PROMPTS, replace(settings, seed=2))
    assert [request.output for request in other_seed] != [request.output for request in together]


def test_sampling_has_transformers_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 300) * 3
    for temperature, k, p in ((0.7, 50, 0.95), (1.3, 0, 0.8), (1.0, 5, 1.0), (0.3, 300, 0.5)):
        scores = TemperatureLogitsWarper(temperature)(None, logits)
        scores = TopKLogitsWarper(k)(None, scores) if k else scores
        scores = TopPLogitsWarper(p)(None, scores) if p < 1 else scores
        tokens, probabilities = top_candidates(logits, temperature, k, p)
        found = torch.zeros_like(logits).scatter(1, tokens, probabilities)
        torch.testing.assert_close(found, scores.softmax(-1), atol=1e-6, rtol=1e-5)


def test_sampling_with_drafts_has_the_distribution_of_the_model(model) -> None:
    """Chi-square over the pairs of the second and third token of 4000 documents, with right and wrong drafts."""
    settings = GenerationSettings(max_tokens=3, temperature=1.0, top_k=3, top_p=1.0, repetition_penalty=1.2)
    prompt = PROMPTS[0]
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, chance in expected.items():
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + list(tokens)])).logits[:, -1]
            ids = torch.tensor([prompt + list(tokens)])
            logits = RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=len(prompt))(ids, logits)
            kept = logits.topk(3)
            for token, probability in zip(kept.indices[0].tolist(), kept.values.softmax(-1)[0].tolist(), strict=True):
                longer[(*tokens, token)] = chance * probability
        expected = longer
    likeliest = max(expected, key=lambda tokens: expected[tokens])
    count = 4000
    requests = [Request(prompt, settings, seed) for seed in range(count)]
    decoder = Decoder(model, [NO_EOS])
    decoder.add(requests)
    for request in requests:
        decoder._lookups[request] = FixedDraft(request, likeliest)  # type: ignore[assignment]
    while decoder.requests:
        decoder.step()
    found = Counter(tuple(request.output) for request in requests)
    assert set(found) <= set(expected)
    chi = sum((found[tokens] - count * p) ** 2 / (count * p) for tokens, p in expected.items())
    freedom = len(expected) - 1
    assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5
    assert sum(request.passes for request in requests) < 2.9 * count  # drafts were used


class FixedDraft:
    """Always drafts the same document."""

    def __init__(self, request: Request, document: Sequence[int]) -> None:
        self.request, self.document = request, document

    def draft(self, max_tokens: int) -> Draft:
        return Draft(list(self.document[len(self.request.output) :][:max_tokens]), 1.0)

    def accept(self, count: int) -> None:
        pass


def test_a_document_ends_at_an_eos_token_anywhere_in_a_draft(model) -> None:
    settings = GenerationSettings(max_tokens=60, temperature=1.0, top_k=100, top_p=1.0, repetition_penalty=1.0)
    (free,) = decode(model, PROMPTS[:1], settings)
    last = max(map(free.output.index, set(free.output)))  # where a token occurs for the first time, late
    eos, document = free.output[last], free.output[:last]
    assert last > 20
    corpus = DraftCorpus()
    for _ in range(2):  # the second time, the complete document is in the corpus
        request = Request(PROMPTS[0], settings, [0, 0])
        decoder = Decoder(model, [eos], corpus)
        decoder.add([request])
        while decoder.requests:
            decoder.step()
        assert (request.output, request.finish_reason) == (document, "stop")
    assert request.passes < last / 2
    request = Request(PROMPTS[0], settings, [0, 0])
    decoder.add([request])
    decoder._lookups[request] = FixedDraft(request, [*document, eos, 5, 5])  # type: ignore[assignment]
    decoder.step()
    assert (request.output, request.finish_reason, request.passes) == (document, "stop", 1)


def test_the_token_limit_is_exact_and_the_context_is_never_exceeded(model) -> None:
    for max_tokens in (1, 2, 17):
        requests = decode(model, PROMPTS, replace(GREEDY, max_tokens=max_tokens))
        assert all(len(request.output) == max_tokens and request.finish_reason == "length" for request in requests)
    context = model.config.max_position_embeddings
    (request,) = decode(model, [[5, 6] * (context // 2 - 4)], GREEDY)
    assert len(request.output) == 8
    with pytest.raises(UserError, match=f"{context} tokens, and the model supports {context}"):
        decode(model, [[5] * context], GREEDY)


def test_removing_a_request_does_not_change_the_others(model) -> None:
    expected = [request.output for request in decode(model, PROMPTS, GREEDY)]
    requests = [Request(prompt, GREEDY, 0) for prompt in PROMPTS]
    decoder = Decoder(model, [NO_EOS])
    decoder.add(requests)
    decoder.step()
    decoder.remove([requests[1]])
    while decoder.requests:
        decoder.step()
    assert [request.output for request in requests if request is not requests[1]] == expected[:1] + expected[2:]
    assert requests[1].finish_reason is None


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: type(config).__name__,
)
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # of PEFT's generate, the reference
def test_every_kind_of_adapter_is_decoded_with(tiny_model, config) -> None:
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted: Any = get_peft_model(base, config).eval()
    adapted.config.eos_token_id = adapted.generation_config.eos_token_id = None
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "prompt_encoder" in name:
                parameter *= 3
    expected = [reference(adapted, prompt, 30) for prompt in PROMPTS]
    assert [request.output for request in decode(adapted, PROMPTS, replace(GREEDY, max_tokens=30))] == expected
    with adapted.disable_adapter():
        untouched = [reference(base, prompt, 30) for prompt in PROMPTS]
    assert untouched != expected


SMALL = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "eos_token_id": None, "bos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_models_with_sliding_window_attention(family) -> None:
    torch.manual_seed(0)
    model: Any = (
        MistralForCausalLM(MistralConfig(**SMALL))
        if family == "mistral"
        else Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, layer_types=["sliding_attention", "full_attention"] * 2))
    )
    with torch.no_grad():
        model.get_input_embeddings().weight *= 30
    model.eval()
    prompts = [[token % 200 for token in prompt] for prompt in PROMPTS]
    expected = [reference(model, prompt, 40) for prompt in prompts]
    assert [request.output for request in decode(model, prompts, replace(GREEDY, max_tokens=40))] == expected


def test_layers_without_keys_and_values_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="layers of type linear_attention"):
        sliding_window(Qwen3NextConfig())


def test_memory_of_a_finished_document_is_freed_without_the_garbage_collector(model) -> None:
    decoder = Decoder(model, [NO_EOS])
    gc.disable()
    try:
        decoder.add([Request([5, 6, 7], replace(GREEDY, max_tokens=4), 0)])
        decoder.step()
        caches = [weakref.ref(layer.keys) for layer in decoder._cache.layers]
        decoder.add([Request([5, 6, 7, 8], replace(GREEDY, max_tokens=9), 0)])
        caches += [weakref.ref(layer.keys) for layer in decoder._cache.layers]
        while decoder.requests:
            decoder.step()
        assert len(caches) == 4 and all(cache() is None for cache in caches)
    finally:
        gc.enable()
