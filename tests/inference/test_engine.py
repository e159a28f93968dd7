"""The engine: its queue and its threads, and its recovery from errors, with a real model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from typst_lit.errors import UserError
from typst_lit.inference.decoder import Decoder
from typst_lit.inference.engine import Engine
from typst_lit.inference.request import Request
from typst_lit.inference.sampling import InvalidScoresError
from typst_lit.inference.settings import GenerationSettings

SETTINGS = GenerationSettings(max_tokens=40, temperature=1.5, top_k=0, top_p=1)
PROMPTS = [[5, 9, 11, 5, 9], list(range(20, 70)), [7] * 9 + [8], [300, 301, 302], [6], [4, 4], [90, 91], [8, 9] * 6]


@pytest.fixture(scope="module")
def model(tiny_model) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    return Engine(Decoder(model, [tokenizer.eos_token_id]), tokenizer)


@pytest.fixture(scope="module")
def expected(model, tokenizer) -> list[str]:
    """The documents of an undisturbed engine."""
    return generate(Engine(Decoder(model, [tokenizer.eos_token_id]), tokenizer))


def requests_for(prompts: Sequence[Sequence[int]] = PROMPTS) -> list[Request]:
    return [Request(prompt, SETTINGS) for prompt in prompts]


def generate(engine: Engine, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[str]:
    return [completion.text for completion in engine.complete(requests_for(prompts))]


class FailingSteps:
    """Makes a decoder's steps fail under a condition, and records the number of requests of each step."""

    def __init__(self, decoder: Any, fails: Callable[[list[Request]], bool], error: Callable[[], Exception]) -> None:
        self.decoder, self.fails, self.error, self.sizes = decoder, fails, error, list[int]()
        self.step = decoder.step
        self.tensor: Any = None
        decoder.step = self

    def __call__(self) -> None:
        self.sizes.append(len(self.decoder.requests))
        if self.fails(self.decoder.requests):
            tensor = torch.zeros(1)  # as the activations of a step: the error's traceback refers to this frame
            self.tensor = weakref.ref(tensor)
            raise self.error()
        self.step()


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(engine, expected) -> None:
    steps = FailingSteps(
        engine.decoder,
        lambda running: len(running) > 3 and running[0].num_generated > 10,
        lambda: torch.OutOfMemoryError("injected"),
    )
    assert generate(engine) == expected
    sizes = list(dict.fromkeys(steps.sizes))
    assert sizes[:3] == [8, 4, 2] and max(steps.sizes[steps.sizes.index(2) :]) == 2
    steps.sizes.clear()
    assert generate(engine) == expected  # an idle engine begins with the full batch again
    assert steps.sizes[0] == 8


def test_memory_that_suffices_for_no_document_fails_each_with_the_error(engine) -> None:
    FailingSteps(engine.decoder, lambda running: True, lambda: torch.OutOfMemoryError("injected"))
    requests = requests_for()
    futures = [engine.submit(request) for request in requests]
    engine.run(until=lambda: all(future.done() for future in futures))
    assert all(isinstance(future.exception(), torch.OutOfMemoryError) for future in futures)
    assert engine.num_running == engine.num_waiting == 0


def test_a_request_whose_step_always_fails_fails_alone(engine, expected) -> None:
    steps = FailingSteps(
        engine.decoder,
        lambda running: any(list(request.prompt) == PROMPTS[3] and request.num_generated for request in running),
        lambda: ValueError("injected"),
    )
    futures = [engine.submit(request) for request in requests_for()]
    engine.run(until=lambda: all(future.done() for future in futures))
    error = futures.pop(3).exception()
    assert isinstance(error, ValueError) and str(error) == "injected"
    assert steps.tensor is not None and steps.tensor() is None  # the error that is retained does not retain tensors
    assert [future.result().text for future in futures] == expected[:3] + expected[4:]
    assert 1 in steps.sizes


def test_a_lost_device_fails_everything_and_is_raised(engine) -> None:
    FailingSteps(engine.decoder, lambda running: True, lambda: torch.AcceleratorError("injected"))
    futures = [engine.submit(request) for request in requests_for()]
    with pytest.raises(torch.AcceleratorError, match="injected"):
        engine.run(until=lambda: False)
    late = engine.submit(Request([1, 2], SETTINGS))
    assert all(isinstance(future.exception(timeout=0), torch.AcceleratorError) for future in [*futures, late])


def test_a_request_without_tokens_fails_alone(engine, expected) -> None:
    empty = engine.submit(Request([], SETTINGS))
    assert generate(engine) == expected
    assert isinstance(empty.exception(timeout=0), UserError) and "no tokens" in str(empty.exception())


def test_scores_that_are_not_finite_fail_only_their_requests(engine, expected) -> None:
    decoder = engine.decoder
    forward_pass = decoder._forward_pass

    def overflow(cache: Any, **inputs: Any) -> torch.Tensor:
        logits = forward_pass(cache, **inputs)
        for row, request in enumerate(decoder.requests):
            if list(request.prompt) == PROMPTS[2] and request.num_generated > 3:
                logits[row] = float("nan")
        return logits

    decoder._forward_pass = overflow
    futures = [engine.submit(request) for request in requests_for()]
    engine.run(until=lambda: all(future.done() for future in futures))
    assert isinstance(futures.pop(2).exception(), InvalidScoresError)
    assert [future.result().text for future in futures] == expected[:2] + expected[3:]


@pytest.mark.parametrize("by_future", [True, False])
def test_cancelled_requests_leave_and_the_others_stay_as_they_are(engine, expected, by_future) -> None:
    engine.batch_size = engine._max_running = 4
    requests = requests_for()
    futures = [engine.submit(request) for request in requests]
    engine.run(until=lambda: requests[1].num_generated > 5)
    for index in (1, 6):  # one that runs, one that waits
        if by_future:
            futures[index].cancel()
        else:
            engine.cancel(requests[index])
            assert requests[index] not in engine.decoder.requests  # also when no thread drives
    assert engine.num_waiting == 3
    engine.run(until=lambda: all(future.done() for future in futures))
    assert [future.cancelled() for future in futures] == [index in (1, 6) for index in range(8)]
    for index, future in enumerate(futures):
        if not future.cancelled():
            assert future.result().text == expected[index]
    assert not engine.decoder.requests


def test_leaving_early_gives_up_what_was_submitted(engine, expected) -> None:
    with pytest.raises(KeyError):
        engine.complete([Request([1, 2, 3], SETTINGS, on_text=lambda text: {}["x"]), *requests_for()])
    assert engine.num_running == engine.num_waiting == 0 and not engine.decoder.requests
    assert generate(engine) == expected


def test_two_threads_run_the_engine_and_each_gets_its_documents(engine, expected) -> None:
    drivers, texts = set[int](), dict[int, list[str]]()
    step = engine.decoder.step

    def recording_step() -> None:
        drivers.add(threading.get_ident())
        step()

    engine.decoder.step = recording_step
    barrier = threading.Barrier(2)

    def call(number: int) -> None:
        barrier.wait()
        for _ in range(3):
            texts.setdefault(number, []).extend(generate(engine, PROMPTS[number::2]))

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert texts == {number: expected[number::2] * 3 for number in range(2)}
    assert engine.num_running == engine.num_waiting == 0 and drivers <= {thread.ident for thread in threads}


def test_a_caller_takes_over_when_the_driver_leaves(engine) -> None:
    stopping = threading.Event()
    first = threading.Thread(target=engine.run, args=(stopping.is_set,), daemon=True)
    first.start()
    future = engine.submit(Request(PROMPTS[0], SETTINGS))
    future.result(timeout=60)

    later = Request(PROMPTS[1], SETTINGS)
    second = threading.Thread(target=engine.run, args=(later.future.done,), daemon=True)
    second.start()
    stopping.set()
    engine.wake()
    first.join(timeout=60)
    assert not first.is_alive() and second.is_alive()
    engine.submit(later)
    second.join(timeout=60)
    assert not second.is_alive() and later.future.done()


def test_an_idle_engine_waits_and_wakes_on_submit(engine, expected) -> None:
    checks, stopping = [], threading.Event()

    def until() -> bool:
        checks.append(None)
        return stopping.is_set()

    driver = threading.Thread(target=engine.run, args=(until,), daemon=True)
    driver.start()
    futures = [engine.submit(request) for request in requests_for()]
    assert [future.result(timeout=60).text for future in futures] == expected
    assert not threading.Event().wait(0.3)
    idle = len(checks)
    assert not threading.Event().wait(0.5) and len(checks) == idle  # it does not poll
    assert engine.submit(Request(PROMPTS[0], SETTINGS)).result(timeout=60).text == expected[0]
    stopping.set()
    engine.wake()
    driver.join(timeout=60)
    assert not driver.is_alive()


def test_text_is_reported_as_it_grows_and_a_retry_does_not_repeat_it(engine, expected) -> None:
    failed = []

    def fails(running: list[Request]) -> bool:
        if running[0].num_generated < 20 or failed:
            return False
        failed.append(True)
        return True

    FailingSteps(engine.decoder, fails, lambda: torch.OutOfMemoryError("injected"))
    texts: list[str] = []
    requests = [Request(PROMPTS[0], SETTINGS, on_text=texts.append), *requests_for(PROMPTS[1:])]
    assert [completion.text for completion in engine.complete(requests)] == expected
    assert failed and texts[-1] == expected[0] and len(set(texts)) == len(texts)
    assert sorted(texts, key=len) == texts


def test_requests_of_two_adapters_take_turns_and_never_share_a_step(engine, expected) -> None:
    decoder: Any = engine.decoder
    adapters_by_step, activated = [], []
    step = decoder.step

    def recording_step() -> None:
        adapters_by_step.append({request.adapter for request in decoder.requests})
        step()

    decoder.step, decoder.set_adapter = recording_step, activated.append
    requests = [Request(prompt, SETTINGS, adapter="ab"[index // 2 % 2]) for index, prompt in enumerate(PROMPTS)]
    assert [completion.text for completion in engine.complete(requests)] == expected
    assert all(len(adapters) == 1 for adapters in adapters_by_step) and activated == ["a", "b", "a", "b"]


def test_deterministic_requests_are_decoded_alone_and_a_token_at_a_time(engine, model) -> None:
    """So the shapes of a document's matrix products, and with them their rounding, depend on the document only."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    settings = GenerationSettings(max_tokens=40, temperature=0, repetition_penalty=1, deterministic=True)
    requests = [
        Request(prompt, replace(settings, deterministic=index % 2 == 0)) for index, prompt in enumerate(PROMPTS)
    ]
    try:
        together = engine.complete(requests)
        for index, prompt in enumerate(PROMPTS):
            shapes.clear()
            (alone,) = engine.complete([Request(prompt, settings)])
            prefill = [(1, len(prompt) - 1)] if len(prompt) > 1 else []
            assert shapes == [*prefill, *[(1, 1)] * alone.passes] and alone.passes == alone.tokens
            if requests[index].settings.deterministic:
                assert (together[index].text, together[index].passes) == (alone.text, alone.passes)
    finally:
        hook.remove()
    assert any(completion.passes < completion.tokens for completion in together[1::2])  # the others have drafts
