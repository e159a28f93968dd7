"""The server when the model fails while it generates for several clients."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from tests.serving.test_app import GREEDY, Server
from typst_lit.inference.decoder import Decoder
from typst_lit.inference.generator import Generator
from typst_lit.inference.settings import GenerationSettings
from typst_lit.serving.app import create_app
from typst_lit.typesetting.typesetter import Typesetter

NUM_CLIENTS = 8


@pytest.fixture(scope="module")
def generator() -> Generator:
    settings = GenerationSettings(max_tokens=60, temperature=0, repetition_penalty=1)
    return Generator.load(base_model="typst-nano", use_4bit=False, compile=False, settings=settings, batch_size=8)


@contextmanager
def serve(generator: Generator, **options: Any) -> Iterator[str]:
    """Serves a generator in a thread of this process, and returns the server's address."""
    server = uvicorn.Server(uvicorn.Config(create_app(generator, **options), log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def post_all(url: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: httpx.post(f"{url}/generate", json=body, timeout=120), bodies))


@pytest.fixture
def bodies(able_pairs) -> list[dict[str, Any]]:
    records = [able_pairs[index % len(able_pairs)]["input"] for index in range(NUM_CLIENTS)]
    return [{"input": {**record, "starting_page": index + 1}} for index, record in enumerate(records)]


def replace_step(monkeypatch, generator: Generator, check: Callable[[Decoder], None]) -> None:
    """Calls a function before each step of the decoder. The first step waits until all clients have connected."""
    engine = generator.engine
    decoder: Any = engine.decoder
    step, is_first = decoder.step, True

    def checked_step() -> None:
        nonlocal is_first
        if is_first:
            wait_until(lambda: engine.num_running + engine.num_waiting == NUM_CLIENTS)
            is_first = False
        check(decoder)
        step()

    monkeypatch.setattr(decoder, "step", checked_step)


def test_documents_that_cannot_be_compiled_now_are_answered_503_and_later_ones_compile(
    monkeypatch, generator, bodies, tmp_path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with Typesetter(workers=1) as typesetter, serve(generator) as url:
        monkeypatch.setattr(generator, "typesetter", typesetter)
        (refused,) = post_all(url, bodies[:1])
        (tmp_path / "gone").mkdir()
        (answered,) = post_all(url, bodies[:1])
    assert refused.status_code == 503 and "No temporary directory can be created" in refused.json()["detail"]
    assert answered.status_code == 200 and "compiled" in answered.json()


def test_out_of_memory_loses_no_request(monkeypatch, generator, bodies) -> None:
    batch_sizes: list[int] = []

    def run_out_of_memory_once(decoder: Decoder) -> None:
        batch_sizes.append(len(decoder.requests))
        if batch_sizes.count(NUM_CLIENTS) == 1 and len(decoder.requests) == NUM_CLIENTS:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    replace_step(monkeypatch, generator, run_out_of_memory_once)
    with serve(generator) as url:
        responses = post_all(url, bodies)
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    assert [response.status_code for response in responses] == [200] * NUM_CLIENTS
    after = batch_sizes[batch_sizes.index(NUM_CLIENTS) + 1 :]
    assert max(after) == NUM_CLIENTS // 2  # the batch size was halved
    monkeypatch.undo()
    for body, response in zip(bodies, responses, strict=True):
        assert response.json()["input"] == body["input"]
        assert response.json()["generated_output"] == generator.generate_one(body["input"]).source


def test_request_that_fails_every_step_fails_alone(monkeypatch, generator, bodies) -> None:
    bodies[3]["max_tokens"] = 59

    def fail(decoder: Decoder) -> None:
        if any(request.settings.max_tokens == 59 for request in decoder.requests):
            raise RuntimeError("device-side assert")

    replace_step(monkeypatch, generator, fail)
    with serve(generator) as url:
        responses = post_all(url, bodies)
        chat = {"messages": [{"role": "user", "content": "Any text"}], "stream": True, "max_tokens": 59}
        stream = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=120).text
    assert [response.status_code for response in responses] == [200] * 3 + [500] + [200] * 4
    assert "RuntimeError: device-side assert" in responses[3].json()["error"]["message"]
    assert '"code": 500' in stream and "device-side assert" in stream and "[DONE]" not in stream


def test_failed_accelerator_is_reported_by_health(monkeypatch, bodies) -> None:
    settings = GenerationSettings(max_tokens=60, temperature=0, repetition_penalty=1)
    generator = Generator.load(base_model="typst-nano", use_4bit=False, compile=False, settings=settings)
    failures: list[Exception] = []

    def fail(decoder: Decoder) -> None:
        raise torch.AcceleratorError("injected")

    replace_step(monkeypatch, generator, fail)
    with serve(generator, on_failure=failures.append) as url:
        responses = post_all(url, bodies)
        health = httpx.get(f"{url}/health")
        late = httpx.post(f"{url}/generate", json=bodies[0])
    assert [response.status_code for response in responses] == [503] * NUM_CLIENTS
    assert health.status_code == 503 and health.json()["status"] == "failed"
    assert late.status_code == 503 and int(late.headers["retry-after"]) > 0
    assert [type(failure) for failure in failures] == [torch.AcceleratorError]


def test_failed_accelerator_ends_the_server_process(able_pairs) -> None:
    server = Server("--base-model", "typst-nano", "--no-4bit", *GREEDY, command=["-m", "tests.serving.failing_server"])
    record = able_pairs[0]["input"]
    with ThreadPoolExecutor(4) as pool, server.client() as client:
        running = [pool.submit(client.post, "/generate", json={"input": record, "seed": seed}) for seed in range(3)]
        wait_until(lambda: client.get("/health").json()["running"] == 3)
        failing = pool.submit(client.post, "/generate", json={"input": record, "max_tokens": 33})
        assert [future.result().status_code for future in [*running, failing]] == [503] * 4
    assert server.wait() == 1
    log = "".join(server.log)
    assert "error: the accelerator has failed (CUDA error: device-side assert triggered). Start the server" in log
    assert "Traceback" not in log
