"""The server as its clients see it: real processes, real HTTP, the real openai client."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.nano.words import WORD_LISTS
from typst_lit.inference.settings import GenerationSettings
from typst_lit.serving.schemas import GenerationOptions

ROOT = Path(__file__).parents[2]
GREEDY = ["--temperature", "0", "--repetition-penalty", "1", "--max-tokens", "1200"]


class Server:
    """A running `typst-lit serve`.

    Args:
        flags: its flags.
        wait: wait until its model is loaded.
        command: what Python runs.
        max_files: its limit of open files.
        environment: additional environment variables.
    """

    def __init__(
        self,
        *flags: object,
        wait: bool = True,
        command: Sequence[str] = ("-m", "typst_lit"),
        max_files: int | None = None,
        **environment: str,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command, "serve", "--port", "0", *map(str, flags)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
            preexec_fn=max_files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))),  # type: ignore[arg-type]
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.url = self.wait_for_log(r"Serving on (http://\S+?)[;,]")[1]
        self.port = int(self.url.rpartition(":")[2])
        if wait:
            self.wait_for_log("The model is loaded")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + 120
        while (match := re.search(pattern, "".join(self.log))) is None:
            assert self.process.poll() is None and time.monotonic() < deadline, "".join(self.log)
            time.sleep(0.01)
        return match

    def wait(self, timeout: float = 120) -> int:
        """Returns the exit status, once the process has ended and its log is complete."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, headers=headers)

    def connect(self, data: bytes = b"") -> socket.socket:
        """Returns a connection on which some bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(data)
        return connection


@pytest.fixture(scope="module")
def server(contract_adapter) -> Iterator[Server]:
    server = Server("--model", contract_adapter, *GREEDY)
    yield server
    assert server.stop() == 0, "".join(server.log)


def test_settings_of_a_request_win_over_those_of_the_server() -> None:
    defaults = GenerationSettings(max_tokens=100, temperature=0.3, seed=2)
    settings = GenerationOptions(sampling="classic", top_k=3).settings(defaults)
    assert (settings.temperature, settings.top_k, settings.repetition_penalty, settings.seed) == (0.7, 3, 1.1, 2)
    assert settings.max_tokens == 100  # what the server was started with is the limit
    assert GenerationOptions(temperature=0).settings(defaults).is_greedy
    assert GenerationOptions().settings(defaults) == defaults


def test_generate_returns_a_document_that_compiles(server, able_pairs) -> None:
    with server.client() as client:
        for body in (able_pairs[0]["input"], {"input": able_pairs[0]["input"], "seed": 3, "attempts": 2}):
            response = client.post("/generate", json=body)
            assert response.status_code == 200, response.text
            document = response.json()
            assert document["compiled"] and document["pages"] >= 1 and document["finish_reason"] == "stop"
            assert document["generated_output"].startswith("#set page(") and document["fidelity"] > 0.9
            assert document["missing_lines"] == [] and document["clean"] == (not document["invented_words"])
            assert document["input"] == able_pairs[0]["input"]


def test_errors_name_their_field(server, able_pairs) -> None:
    record = able_pairs[0]["input"]
    with server.client() as client:
        for body, message in (
            ({**record, "starting_page": "one"}, "field 'starting_page' must be a whole number"),
            ({key: value for key, value in record.items() if key != "department"}, "field 'department' is missing"),
            ({"input": record, "temperature": 5}, "field 'temperature'"),
            ({"input": record, "temprature": 1}, "field 'temprature'"),
            ({"input": record, "sampling": "beam"}, "field 'sampling'"),
            ({"input": record, "adapter": "letters"}, "no adapter 'letters'; there is: default"),
            ([record], "request body"),
        ):
            response = client.post("/generate", json=body)
            assert response.status_code == 422 and message in response.json()["error"]["message"], response.text
        assert client.post("/generate", content=b"{").status_code == 422
        assert client.post("/generate", content=b" " * (2 << 20)).status_code == 413

        def chunks() -> Iterator[bytes]:
            for _ in range(300):
                yield b" " * 8192

        assert client.post("/generate", content=chunks()).status_code == 413
        unknown_path = client.get("/nothing")
        assert unknown_path.status_code == 404 and unknown_path.json()["error"]["message"] == "Not Found"


def test_openai_client_gets_completions_chats_and_streams(server, able_pairs) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    record = json.dumps(able_pairs[1]["input"])
    assert [model.id for model in client.models.list()] == ["default"]
    completion = client.completions.create(model="default", prompt=record)
    text = completion.choices[0].text
    assert text.startswith("#set page(") and completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None and completion.usage.completion_tokens > 100
    assert completion.typst["compiled"]  # type: ignore[attr-defined]
    chat = client.chat.completions.create(model="default", messages=[{"role": "user", "content": record}])
    assert chat.choices[0].message.content == text
    chunks = [
        chunk.choices[0]
        for chunk in client.chat.completions.create(
            model="default", messages=[{"role": "user", "content": record}], stream=True
        )
    ]
    assert len(chunks) > 5
    assert "".join(chunk.delta.content or "" for chunk in chunks) == text and chunks[-1].finish_reason == "stop"
    plain = client.completions.create(model="default", prompt="Any text", max_tokens=7)
    assert plain.usage and plain.usage.completion_tokens <= 7
    short = client.completions.create(model="default", prompt=record, max_tokens=7)
    assert short.choices[0].finish_reason == "length" and short.usage and short.usage.completion_tokens == 7
    with pytest.raises(openai.UnprocessableEntityError, match="stop"):  # refused, not silently ignored
        client.completions.create(model="default", prompt=record, stop=["x"])
    with pytest.raises(openai.UnprocessableEntityError, match="field 'department' is missing"):
        client.completions.create(model="default", prompt='{"project_title": "x"}')


def test_metrics_health_and_docs(server) -> None:
    with server.client() as client:
        health = client.get("/health").json()
        assert health["status"] == "ok" and health["running"] == 0
        metrics = client.get("/metrics").text
        assert re.search(r'typst_lit_documents_total\{finish_reason="stop"\} [1-9]', metrics)
        counts = [
            int(float(re.search(rf"(?m)^typst_lit_{name}_total (\S+)", metrics)[1])) for name in ("clean", "not_clean")
        ]
        finished = re.findall(r"typst_lit_documents_total\{\S+ (\S+)", metrics)
        assert counts[0] > 0 and sum(counts) <= sum(map(float, finished))
        assert "typst_lit_seconds_bucket" in metrics and "typst_lit_waiting 0.0" in metrics
        schema = client.get("/openapi.json").json()
        assert {"/generate", "/v1/completions", "/v1/chat/completions"} <= schema["paths"].keys()
        assert {"401", "408", "413", "422", "429", "500", "503"} <= schema["paths"]["/generate"]["post"][
            "responses"
        ].keys()
        assert client.get("/docs").status_code == 200
        about = client.get("/").json()
        assert about["status"] == "ok" and about["docs"] == "/docs" and "/generate" in about["paths"]
        assert "/v1/chat/completions" in client.get("/", headers={"Accept": "text/html"}).text


def test_each_request_is_logged_in_one_line(server, able_pairs) -> None:
    start = len(server.log)
    with server.client() as client:
        client.post("/generate", json={"input": able_pairs[0]["input"], "max_tokens": 5})
        client.post("/v1/completions?token=secret", json={"prompt": "x", "max_tokens": 3, "stream": True})
        client.get("/a%0Ab" + "c" * 1000)
    server.wait_for_log("ccc")
    first, second, third = server.log[start:]
    assert re.fullmatch(r"POST /generate 200, \d+\.\d\d s, 5 tokens\n", first)
    assert re.fullmatch(r"POST /v1/completions 200, \d+\.\d\d s, 3 tokens\n", second)
    assert re.fullmatch(r"GET /a%0Abc{1,200} 404, \d+\.\d\d s\n", third)


def test_web_pages_of_other_sites_can_not_use_a_server_without_a_token(server) -> None:
    port = server.port
    with server.client() as client:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 400
        for origin in (
            f"http://127.0.0.1:{port + 1}",
            "http://evil.example",
            f"http://localhost:{port + 1}",
            "null",
            "http://[",
            f"http://evil:{port}",
        ):
            response = client.post("/generate", json={}, headers={"Origin": origin})
            assert response.status_code == 403 and "other sites" in response.json()["error"]["message"]
        for name in ("localhost", "127.0.0.1", "[::1]"):
            headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
            assert client.get("/v1/models", headers=headers).status_code == 200


def test_concurrent_clients_get_their_own_documents(server, able_pairs) -> None:
    titles = [noun.capitalize() for noun in WORD_LISTS["nouns"][:80]]
    records = [
        {**able_pairs[index % len(able_pairs)]["input"], "starting_page": index + 1, "project_title": f"Load {title}"}
        for index, title in enumerate(titles)
    ]

    def post(index: int) -> dict[str, Any]:
        with server.client() as client:
            body = {"input": records[index], "max_tokens": 100, "temperature": 0.1}
            response = client.post("/generate", json=body)
            assert response.status_code == 200, f"{response.text} {server.log[-40:]}"
            return response.json()

    with ThreadPoolExecutor(20) as pool:
        documents = list(pool.map(post, range(80)))
    assert [document["input"] for document in documents] == records
    titles_found = [set(re.findall(r"Load (\w+)", document["generated_output"])) for document in documents]
    assert not any(found & ({*titles} - {title}) for found, title in zip(titles_found, titles, strict=True))
    assert sum(found == {title} for found, title in zip(titles_found, titles, strict=True)) > 75
    for index in (0, 7, 79):
        assert post(index)["generated_output"] == documents[index]["generated_output"]


def test_disconnected_client_frees_its_slot(server, able_pairs) -> None:
    with server.client() as client:
        assert client.get("/health").json()["running"] == 0
        with pytest.raises(httpx.ReadTimeout):
            body = {"input": able_pairs[2]["input"], "temperature": 2, "top_k": 0, "top_p": 1, "attempts": 16}
            client.post("/generate", json=body, timeout=0.5)
        deadline = time.monotonic() + 20
        while client.get("/health").json()["running"] and time.monotonic() < deadline:
            time.sleep(0.05)
        metrics = client.get("/metrics").text
        assert client.get("/health").json()["running"] == 0
        assert not re.search(r'finish_reason="cancelled"\} [1-9]', metrics)


def test_full_queue_is_refused_with_retry_after(able_adapter, able_pairs) -> None:
    server = Server("--model", able_adapter, *GREEDY, "--queue", 1, "--batch-size", 1)
    body = {"messages": [{"role": "user", "content": json.dumps(able_pairs[0]["input"])}], "stream": True}
    requests = [("/generate", able_pairs[0]["input"])] * 3 + [("/v1/chat/completions", body)] * 3
    with ThreadPoolExecutor(6) as pool, server.client() as client:
        responses = list(pool.map(lambda request: client.post(request[0], json=request[1]), requests))
    assert sorted(response.status_code for response in responses) == [200, 200, 429, 429, 429, 429]
    assert all(int(response.headers["retry-after"]) >= 1 for response in responses if response.status_code == 429)
    assert server.stop() == 0


def test_sigterm_finishes_running_requests(able_adapter, able_pairs) -> None:
    server = Server("--model", able_adapter, *GREEDY)
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        future = pool.submit(client.post, "/generate", json=able_pairs[0]["input"])
        deadline = time.monotonic() + 20
        while not client.get("/health").json()["running"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.stop() == 0
        assert future.result().json()["compiled"]


def test_public_hosts_need_a_token_and_requests_must_send_it(run, able_adapter, able_pairs) -> None:
    refused = run("serve", "--model", able_adapter, "--host", "0.0.0.0")
    assert refused.status == 1 and "TYPST_LIT_TOKEN" in refused.err
    server = Server("--model", able_adapter, *GREEDY, "--no-log-requests", TYPST_LIT_TOKEN="secret")
    body = {"input": able_pairs[0]["input"], "max_tokens": 5}
    with server.client() as client:
        assert client.get("/health").status_code == 200
        assert client.post("/generate", json=body).status_code == 401
        assert client.post("/generate", json=body, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.post("/generate", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/metrics").status_code == 401
        schema = client.get("/openapi.json").json()
        assert schema["paths"]["/generate"]["post"]["security"] == [{"HTTPBearer": []}]
        assert "security" not in schema["paths"]["/health"]["get"]
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret", "Host": "proxy"}).status_code == 200
    assert server.stop() == 0
    assert not any("GET" in line or "POST" in line for line in server.log)


def test_port_in_use_is_an_error(server, able_adapter, run) -> None:
    port = server.url.rsplit(":", 1)[1]
    result = run("serve", "--model", able_adapter, "--port", port)
    assert result.status == 1 and f"port {port}" in result.err and "Traceback" not in result.err
