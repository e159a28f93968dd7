"""The server and clients that hold connections, send half of a request, read nothing, or send extreme values."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.test_app import GREEDY, Server
from typst_lit.errors import UserError
from typst_lit.serving.limits import ServerLimits, connections_for_files

JSON = {"Content-Type": "application/json"}
HALF_POST = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
NESTED: Any = 1
for _ in range(700):
    NESTED = [NESTED]
MAX_FILES = 256
CLIENT_TIMEOUT_S = 2


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ["--base-model", "typst-nano", "--no-4bit", *GREEDY, "--client-timeout-s", CLIENT_TIMEOUT_S]
    server = Server(*flags, max_files=MAX_FILES)
    yield server
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.log)


def chat(content: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **options}


def abusive_requests(record: dict[str, Any]) -> list[tuple[str, Any, int]]:
    """Returns paths, bodies, and the expected status."""
    return [
        ("/generate", {"input": record, "max_tokens": 5, "temperature": 1e-40}, 200),
        ("/generate", {"input": record, "max_tokens": 5, "temperature": 1, "top_p": 1e-320}, 200),
        ("/generate", {"input": record, "max_tokens": 5, "temperature": 5e-324, "top_p": 5e-324, "top_k": 10**30}, 200),
        ("/generate", {"input": record, "max_tokens": 5, "temperature": 1, "repetition_penalty": 1e300}, 422),
        ("/v1/chat/completions", chat(""), 422),
        ("/v1/chat/completions", chat("", stream=True), 422),
        ("/v1/completions", {"prompt": ""}, 422),
        ("/v1/completions", {"prompt": "[" * 90_000}, 422),
        ("/v1/completions", {"prompt": '{"a":' * 90_000}, 422),
        ("/v1/completions", {"prompt": "x", "adapter": "\ud800"}, 422),
        ("/v1/completions", {"prompt": "x", "model": "\ud800"}, 422),
        ("/v1/completions", {"prompt": "x", "model": "\ud800", "stream": True}, 422),
        ("/v1/completions", {"prompt": "x", "model": "m" * 400_000, "stream": True}, 422),
        ("/v1/completions", {"prompt": "\ud800"}, 422),
        ("/generate", {"input": record, "adapter": "\ud800"}, 422),
        ("/generate", {"input": record, "\ud800": 1}, 422),
        ("/generate", {"input": {**record, "other": NESTED}}, 422),
        ("/generate", {"input": {**record, "other": "\ud800"}}, 422),
        ("/generate", {**record, "\ud800": 1}, 422),
        ("/v1/completions", {"prompt": json.dumps({**record, "other": NESTED})}, 422),
    ]


def test_requests_with_extreme_values_harm_no_other_request(server, able_pairs) -> None:
    records = [pair["input"] for pair in able_pairs[:4]]
    abuses = abusive_requests(records[0])
    with server.client() as client, ThreadPoolExecutor(8) as pool:

        def generate(record: dict[str, Any]) -> httpx.Response:
            return client.post("/generate", json={"input": record, "max_tokens": 100})

        alone = [generate(record).json()["generated_output"] for record in records]
        victims = [pool.submit(generate, record) for record in records]
        while client.get("/health").json()["running"] < len(victims):
            time.sleep(0.01)
        responses = [client.post(path, content=json.dumps(body), headers=JSON) for path, body, _ in abuses]
        assert [future.result().status_code for future in victims] == [200] * len(victims)
        assert [future.result().json()["generated_output"] for future in victims] == alone
    for (path, body, status), response in zip(abuses, responses, strict=True):
        assert response.status_code == status, (path, str(body)[:100], response.text[:200])
        assert status == 200 or response.json()["error"]["message"]
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}


def test_idle_connections_keep_nobody_out_and_fill_no_log(server) -> None:
    start = len(server.log)
    process = psutil.Process(server.process.pid)
    connections = [server.connect() for _ in range(400)]
    health = [httpx.get(f"{server.url}/health", timeout=10).status_code for _ in range(20)]
    assert health == [200] * 20
    assert process.num_fds() < MAX_FILES
    assert sum("file descriptors" in line for line in server.log[start:]) <= 1
    assert all("/health" in line or "file descriptors" in line for line in server.log[start:])
    for connection in connections:
        connection.close()


def test_half_sent_posts_keep_nobody_out(server) -> None:
    connections = [server.connect(HALF_POST) for _ in range(300)]
    assert [httpx.get(f"{server.url}/health", timeout=10).status_code for _ in range(5)] == [200] * 5
    for connection in connections:
        connection.close()


def received(connection: socket.socket) -> bytes:
    """Returns all that a server sends until it closes the connection."""
    data = bytearray()
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return bytes(data)


def test_clients_that_send_too_slowly_are_disconnected(server) -> None:
    start = time.monotonic()
    header = server.connect(b"POST /generate HTTP/1.1\r\nHost: loc")
    body = server.connect(HALF_POST)
    answered = server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for _ in range(4):  # headers of a second request, one byte now and then
        time.sleep(0.3)
        answered.sendall(b"G")
    assert received(header) == b""
    assert received(body).startswith(b"HTTP/1.1 408 ")
    assert received(answered).count(b"HTTP/1.1") == 1
    assert time.monotonic() - start < 15 * CLIENT_TIMEOUT_S


def test_clients_that_read_nothing_are_disconnected(server) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection = server.connect(request)
    process = psutil.Process(server.process.pid)
    local_port = connection.getsockname()[1]

    def is_connected() -> bool:
        return any(
            other.raddr and other.raddr.port == local_port and other.status == psutil.CONN_ESTABLISHED
            for other in process.net_connections("tcp")
        )

    deadline = time.monotonic() + 15 * CLIENT_TIMEOUT_S
    while not is_connected():  # a busy machine accepts it late
        assert time.monotonic() < deadline
    connection.sendall(request * 1499)
    while is_connected():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert received(connection).count(b"HTTP/1.1 200") < 1500


def test_health_says_that_the_model_is_loading_and_the_shutdown_ends_in_time() -> None:
    server = Server("--base-model", "typst-nano", "--shutdown-timeout-s", 1, wait=False)
    with server.client() as client:
        health, generation, models = client.get("/health"), client.post("/generate", json={}), client.get("/v1/models")
        assert health.status_code == 503 and health.json() == {"status": "loading"}
        assert generation.status_code == models.status_code == 503 and int(generation.headers["retry-after"]) > 0
        assert client.get("/").json()["status"] == "loading" and client.get("/docs").status_code == 200
    connection = server.connect(HALF_POST)
    start = time.monotonic()
    time.sleep(0.2)
    assert server.stop() == 0
    assert time.monotonic() - start < 30
    assert received(connection).startswith(b"HTTP/1.1 503 ")
    assert "Traceback" not in "".join(server.log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_server_immediately(number) -> None:
    server = Server("--base-model", "typst-nano", wait=False)
    connection = server.connect(HALF_POST)
    time.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert server.process.poll() is None  # it waits for the request
    server.process.send_signal(number)
    assert server.wait(timeout=30) == 128 + number
    assert "Traceback" not in "".join(server.log)
    connection.close()


def test_model_that_can_not_be_loaded_ends_the_server(run, tmp_path) -> None:
    result = run("serve", "--model", tmp_path / "missing", "--port", 0)
    assert result.status == 1 and "missing" in result.err and "Traceback" not in result.err
    assert result.err.count("error: ") == 1


def test_limits_are_checked(run) -> None:
    for flags, message in (
        (["--queue", -1], "--queue: must be 0 or more, not -1"),
        (["--max-connections", 1], "--max-connections: must be 4 or more"),
        (["--client-timeout-s", 0], "--client-timeout-s: must be above 0"),
        (["--shutdown-timeout-s", 0], "--shutdown-timeout-s: must be 1 or more"),
        (["--attempts", 0], "--attempts: must be 1 or more"),
    ):
        result = run("serve", "--base-model", "typst-nano", *flags)
        assert result.status == 1 and message in result.err
    assert ServerLimits(queue=10).num_connections == 202
    with pytest.raises(UserError, match="ulimit -n"):
        connections_for_files(130)
