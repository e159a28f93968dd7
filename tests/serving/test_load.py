"""The server under load: clients that disconnect, read slowly or send invalid requests, and workers that are killed."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.test_app import GREEDY, Server

pytestmark = pytest.mark.slow
SHORT = {"max_tokens": 20, "temperature": 0, "attempts": 1}


def typst_workers(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if "typst_lit.typesetting.worker" in child.cmdline()]


def test_bad_clients_do_not_affect_others(able_adapter, able_pairs) -> None:
    """200 requests from 20 clients; every valid one is answered with its own record."""
    server = Server("--model", able_adapter, *GREEDY, "--queue", 400)
    record = able_pairs[0]["input"]
    rng = random.Random(0)
    behaviors = [
        rng.choice(["valid"] * 6 + ["disconnect", "slow", "oversized", "malformed", "invalid", "unknown path"])
        for _ in range(200)
    ]
    killed: list[int] = []

    def post(index: int) -> tuple[str, Any]:
        behavior, body = behaviors[index], {"input": {**record, "starting_page": index + 1}, **SHORT}
        if index in (60, 120, 180):
            for worker in typst_workers(server):
                worker.send_signal(signal.SIGKILL)
                killed.append(worker.pid)
        with server.client() as client:
            if behavior == "valid":
                return behavior, client.post("/generate", json=body)
            if behavior == "disconnect":
                with contextlib.suppress(httpx.TimeoutException):
                    client.post("/generate", json={**body, "max_tokens": 2000}, timeout=rng.uniform(0.05, 1))
                return behavior, None
            if behavior == "slow":
                lines = []
                chat = {
                    "messages": [{"role": "user", "content": json.dumps(body["input"])}],
                    "stream": True,
                    "max_tokens": 20,
                }
                with client.stream("POST", "/v1/chat/completions", json=chat) as response:
                    for line in response.iter_lines():
                        lines.append(line)
                        time.sleep(0.05)
                return behavior, lines
            if behavior == "oversized":
                oversized = {**body["input"], "contents_txt": "word " * 10_000_000}
                try:
                    return behavior, client.post("/generate", json={"input": oversized, **SHORT})
                except httpx.TransportError as error:  # the server may close the connection without reading the body
                    return behavior, error
            if behavior == "malformed":
                return behavior, client.post(
                    "/generate", content=b'{"input": {"starting', headers={"content-type": "application/json"}
                )
            if behavior == "invalid":
                return behavior, client.post(
                    "/generate", json={"input": {**record, "starting_page": "one"}, "max_tokens": -1}
                )
            return behavior, client.post("/nowhere", json=body)

    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(post, range(200)))
    for index, (behavior, response) in enumerate(responses):
        if behavior == "valid":
            assert response.status_code == 200, f"{index}: {response.text}"
            assert response.json()["input"]["starting_page"] == index + 1
        elif behavior == "slow":
            assert response[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in response
        elif behavior in ("malformed", "invalid", "unknown path"):
            assert 400 <= response.status_code < 500 and "Traceback" not in response.text
        elif behavior == "oversized" and isinstance(response, httpx.Response):
            assert 400 <= response.status_code < 500, response.text[:300]
    assert killed
    with server.client() as client:
        deadline = time.monotonic() + 60
        while client.get("/health").json()["running"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert client.get("/health").json()["running"] == 0
    assert server.stop() == 0
    assert not any("Traceback" in line for line in server.log), "".join(server.log[-60:])


def test_memory_is_constant_over_two_thousand_requests(able_adapter, able_pairs) -> None:
    server = Server("--model", able_adapter, *GREEDY)
    process = psutil.Process(server.process.pid)

    def post(index: int) -> int:
        body = {
            "input": {**able_pairs[index % len(able_pairs)]["input"], "starting_page": index},
            **SHORT,
            "max_tokens": 4,
        }
        with server.client() as client:
            return client.post("/generate", json=body).status_code

    rss_mib = []
    with ThreadPoolExecutor(8) as pool:
        for quarter in range(4):
            assert set(pool.map(post, range(quarter * 500, quarter * 500 + 500))) == {200}
            rss_mib.append(process.memory_info().rss / 2**20)
    print("RSS in MiB after every 500 requests:", [round(size) for size in rss_mib])
    assert rss_mib[3] < rss_mib[0] * 1.05
    assert server.stop() == 0
