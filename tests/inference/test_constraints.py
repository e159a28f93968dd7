"""Tokens that can't follow in valid Typst are not sampled: with a model of random weights, and with a trained one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import typst

from typst_lit import GenerationSettings, Generator
from typst_lit.inference.constraints import OutputConstraint, OutputState, TokenBytes
from typst_lit.inference.request import Request
from typst_lit.typesetting.syntax import START, advance, may_end

RANDOM = GenerationSettings(max_tokens=400, temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
PROMPTS = [[number, 2 * number, 7] for number in range(3, 27, 3)]
SYNTAX_ERROR = re.compile("unclosed|unexpected (closing|end of block)")


@pytest.fixture(scope="module")
def generator(tiny_model) -> Generator:
    return Generator.load(base_model=str(tiny_model), use_4bit=False, compile=False)


def decode(generator: Generator, settings: GenerationSettings, batch_size: int = 6) -> list[str]:
    """Returns the sources of `PROMPTS`, of as many tokens as the settings allow."""
    engine = generator.engine
    engine.batch_size = batch_size
    requests = [Request(prompt, settings, [settings.seed, index]) for index, prompt in enumerate(PROMPTS)]
    return [completion.text for completion in engine.complete(requests)]


def delimiter_errors(source: str, root: Any) -> list[str]:
    try:
        typst.Compiler(root=str(root)).compile(source.encode())
    except typst.TypstError as error:
        return SYNTAX_ERROR.findall(error.diagnostic)
    return []


def test_the_bytes_of_tokens_make_up_the_text(tokenizer):
    text = "Ärger über 3,50 € in Привет 世界 👩‍🚀 *fett*\n"
    table = TokenBytes(tokenizer)
    ids = tokenizer(text)["input_ids"]
    assert b"".join(table[token] for token in ids).decode() == text
    assert any(len(table[token]) == 1 and table[token][0] > 127 for token in ids)  # some are a part of a character
    assert table[tokenizer.eos_token_id] == b""
    assert table[10**6] == b""


def test_parts_of_characters_are_allowed_where_any_character_is(tokenizer):
    constraint = OutputConstraint(tokenizer)
    first = next(token for token in tokenizer("€")["input_ids"])
    assert constraint.advance(OutputState(), first) is not None

    def state_after(text: str) -> OutputState:
        syntax = advance(START, text)
        assert syntax is not None
        return OutputState(syntax)

    assert constraint.advance(state_after('#f("'), first) is not None
    assert constraint.advance(state_after("#let x = "), first) is None
    letter = tokenizer("a")["input_ids"][0]
    incomplete = constraint.advance(OutputState(), first)
    assert incomplete is not None
    assert constraint.advance(incomplete, letter) is None  # not the rest of the character


def test_random_weights_write_no_invalid_delimiters(generator):
    free = decode(generator, replace(RANDOM, valid_syntax=False))
    assert sum(advance(START, source) is None for source in free) > len(free) // 2  # the tokens do include delimiters
    constrained = decode(generator, RANDOM)
    assert all(advance(START, source) is not None for source in constrained)
    assert sum(map(len, constrained)) > 200 * len(constrained)  # they did not all end early


def test_what_is_open_at_the_end_is_closed(generator, tmp_path):
    """The model of random weights ends somewhere when every 128th id is an EOS token."""
    decoder = generator.engine.decoder
    eos_token_ids = decoder.eos_token_ids
    decoder.eos_token_ids = frozenset(range(0, 1024, 128)) | eos_token_ids
    try:
        sources = [source for seed in range(4) for source in decode(generator, replace(RANDOM, seed=seed))]
    finally:
        decoder.eos_token_ids = eos_token_ids
    num_closed = 0
    for source in sources:
        state = advance(START, source)
        assert state is not None
        assert may_end(state)
        assert not delimiter_errors(source, tmp_path), source
        assert "\ufffd" not in source
        num_closed += source.endswith((")", "]", "}", "*", "_", "$", '"', "`", ">", ";", "none"))
    assert num_closed > 3


def test_constrained_documents_depend_neither_on_their_batch_nor_on_drafts(generator):
    short = replace(RANDOM, max_tokens=100)
    together = decode(generator, short)
    assert decode(generator, short, batch_size=1) == together
    assert decode(generator, short, batch_size=4) == together
    assert decode(generator, replace(short, prompt_lookup=False)) == together
    greedy = replace(short, temperature=0.0)
    assert decode(generator, greedy, batch_size=1) == decode(generator, greedy)


def test_valid_documents_are_the_same_with_and_without_the_constraint(able_adapter, able_pairs):
    settings = GenerationSettings(temperature=0, repetition_penalty=1.0, max_tokens=400)
    generator = Generator.load(able_adapter, use_4bit=False, settings=settings)
    records = [pair["input"] for pair in able_pairs[:3]]
    constrained = sorted(generator.generate(records), key=lambda document: document.index)
    generator.settings = replace(settings, valid_syntax=False)
    free = sorted(generator.generate(records), key=lambda document: document.index)
    valid = [index for index, document in enumerate(free) if document.compiled and not document.repairs]
    assert valid
    for index in valid:
        assert constrained[index].source == free[index].source
