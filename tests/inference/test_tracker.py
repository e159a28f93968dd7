"""Documents of a model with random weights: what was written is compiled meanwhile, and goes back where that fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from typst_lit import GenerationSettings, Generator
from typst_lit.typesetting.typesetter import Typesetter

RANDOM = GenerationSettings(max_tokens=150, temperature=1.0, top_p=1.0, top_k=0)


@pytest.fixture(scope="module")
def generator(tiny_model):
    with Typesetter(workers=2) as typesetter:
        yield Generator.load(base_model=str(tiny_model), use_4bit=False, typesetter=typesetter)


def documents(generator: Generator, records, settings: GenerationSettings, batch_size: int = 8):
    generator.settings = settings
    generator.engine.batch_size = batch_size
    return sorted(generator.generate(records), key=lambda document: document.index)


@pytest.fixture(scope="module")
def records(able_pairs):
    return [pair["input"] for pair in able_pairs]


def test_documents_of_random_weights_compile_as_they_are_written(generator, records):
    checked = documents(generator, records, RANDOM)
    assert all(document.compiled and not document.repairs for document in checked)
    assert all(document.result.text.strip() for document in checked)
    assert sum(document.tokens for document in checked) > 80 * len(checked)
    unchecked = documents(generator, records, replace(RANDOM, checkpoints=False))
    assert any(not document.compiled or document.repairs for document in unchecked)
    assert not any(document.rollbacks for document in unchecked)
    assert any(document.rollbacks for document in checked)


def test_where_it_goes_back_to_depends_on_the_text_only(generator, records):
    short = replace(RANDOM, max_tokens=80)
    together = [document.source for document in documents(generator, records[:4], short)]
    assert [document.source for document in documents(generator, records[:4], short, batch_size=1)] == together
    assert [
        document.source for document in documents(generator, records[:4], replace(short, prompt_lookup=False))
    ] == together


def test_what_is_streamed_is_never_taken_back(generator, records):
    generator.settings = RANDOM
    texts: list[str] = []
    future = generator.submit(generator.attempts(records[0]), on_text=texts.append)
    future.add_done_callback(lambda _: generator.engine.wake())
    generator.engine.run(until=future.done)
    source = future.result().source
    assert texts and all(later.startswith(text) for text, later in zip(texts, [*texts[1:], source], strict=True))
