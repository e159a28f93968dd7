"""The server under what the world does to it: clients that leave, dawdle, shout or talk nonsense, and dying workers."""

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
BRIEF = {"max_tokens": 20, "temperature": 0, "attempts": 1}


def workers_of(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if "typst_lit.typesetting.worker" in child.cmdline()]


def test_bad_clients_harm_no_other(able_adapter, able_pairs) -> None:
    """200 requests of 20 clients; every sound one is answered with its own record."""
    server = Server("--model", able_adapter, *GREEDY, "--queue", 400)
    record = able_pairs[0]["input"]
    chance = random.Random(0)
    kinds = [chance.choice(["sound"] * 6 + ["leaves", "slow", "large", "broken", "wrong", "path"]) for _ in range(200)]
    killed: list[int] = []

    def ask(place: int) -> tuple[str, Any]:
        kind, body = kinds[place], {"input": {**record, "starting_page": place + 1}, **BRIEF}
        if place in (60, 120, 180):
            for worker in workers_of(server):
                worker.send_signal(signal.SIGKILL)
                killed.append(worker.pid)
        with server.client() as client:
            if kind == "sound":
                return kind, client.post("/generate", json=body)
            if kind == "leaves":
                with contextlib.suppress(httpx.TimeoutException):
                    client.post("/generate", json={**body, "max_tokens": 2000}, timeout=chance.uniform(0.05, 1))
                return kind, None
            if kind == "slow":
                text = []
                chat = {
                    "messages": [{"role": "user", "content": json.dumps(body["input"])}],
                    "stream": True,
                    "max_tokens": 20,
                }
                with client.stream("POST", "/v1/chat/completions", json=chat) as answer:
                    for line in answer.iter_lines():
                        text.append(line)
                        time.sleep(0.05)
                return kind, text
            if kind == "large":
                large = {**body["input"], "contents_txt": "word " * 10_000_000}
                try:
                    return kind, client.post("/generate", json={"input": large, **BRIEF})
                except httpx.TransportError as error:  # it may hang up on what it will not read
                    return kind, error
            if kind == "broken":
                return kind, client.post(
                    "/generate", content=b'{"input": {"starting', headers={"content-type": "application/json"}
                )
            if kind == "wrong":
                return kind, client.post(
                    "/generate", json={"input": {**record, "starting_page": "one"}, "max_tokens": -1}
                )
            return kind, client.post("/nowhere", json=body)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(200)))
    for place, (kind, answer) in enumerate(answers):
        if kind == "sound":
            assert answer.status_code == 200, f"{place}: {answer.text}"
            assert answer.json()["input"]["starting_page"] == place + 1
        elif kind == "slow":
            assert answer[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in answer
        elif kind in ("broken", "wrong", "path"):
            assert 400 <= answer.status_code < 500 and "Traceback" not in answer.text
        elif kind == "large" and isinstance(answer, httpx.Response):
            assert 400 <= answer.status_code < 500, answer.text[:300]
    assert killed
    with server.client() as client:
        limit = time.monotonic() + 60
        while client.get("/health").json()["running"] and time.monotonic() < limit:
            time.sleep(0.1)
        assert client.get("/health").json()["running"] == 0
    assert server.stop() == 0
    assert not any("Traceback" in line for line in server.log), "".join(server.log[-60:])


def test_memory_is_flat_over_two_thousand_requests(able_adapter, able_pairs) -> None:
    server = Server("--model", able_adapter, *GREEDY)
    process = psutil.Process(server.process.pid)

    def ask(place: int) -> int:
        body = {
            "input": {**able_pairs[place % len(able_pairs)]["input"], "starting_page": place},
            **BRIEF,
            "max_tokens": 4,
        }
        with server.client() as client:
            return client.post("/generate", json=body).status_code

    sizes = []
    with ThreadPoolExecutor(8) as pool:
        for part in range(4):
            assert set(pool.map(ask, range(part * 500, part * 500 + 500))) == {200}
            sizes.append(process.memory_info().rss / 2**20)
    print("MiB after every 500 requests:", [round(size) for size in sizes])
    assert sizes[3] < sizes[0] * 1.05
    assert server.stop() == 0
