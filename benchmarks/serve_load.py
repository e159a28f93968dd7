"""Whether a server under load answers every sound request correctly while other clients abuse it.

    python -m benchmarks.serve_load benchmarks/results/serve_load --clients 20 --requests 400

Starts `typst-lit serve` with typst-nano on the loopback address. Clients send requests at the same time; 40 % of them
are abusive (`ABUSES`). At the end, each sound request is sent again, alone, with the same seed: its record and document
must be the same. After each quarter of the requests, the memory, open files and threads of the server's process are
measured.
"""

from __future__ import annotations

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from benchmarks.harness import ResultFile, argument_parser
from benchmarks.nano.source import SyntheticReports

MIB = 2**20
NUM_PARTS = 4
SOUND_SHARE = 0.6  # of the requests
IDLE_CONNECTIONS = 20  # that one abusive client opens
HOLD_S = 0.5  # how long an abusive client holds a connection
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: its address.
        process: its process.
    """

    url: str
    process: psutil.Process

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=300, headers=JSON)

    def connect(self, data: bytes = b"") -> socket.socket:
        """Returns a connection on which some bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=60)
        connection.sendall(data)
        return connection

    def measure(self) -> dict[str, float]:
        """Returns memory, open files and threads of the process."""
        rss = self.process.memory_info().rss / MIB
        return {"rss_mib": round(rss, 1), "files": self.process.num_fds(), "threads": self.process.num_threads()}


@contextmanager
def running_server(flags: Sequence[str]) -> Iterator[Server]:
    """Starts a server, waits until its model is loaded, and stops it in the end."""
    command = [sys.executable, "-m", "typst_lit", "serve", "--base-model", "typst-nano", "--no-4bit", "--port", "0"]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        first_line = next(line for line in process.stderr if "Serving on" in line)
        url = first_line.split("Serving on ")[1].partition(";")[0]
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: Counter(process.stderr or []))  # reads the log, so that the server can write it
            while httpx.get(f"{url}/health", timeout=60).status_code != 200:
                time.sleep(0.1)
            yield Server(url, psutil.Process(process.pid))
            process.terminate()
            process.wait(90)
    finally:
        process.kill()


def post(server: Server, path: str, body: Any) -> int:
    """Sends a body, which may have half of a surrogate pair, and returns the status."""
    with server.client() as client:
        return client.post(path, content=json.dumps(body)).status_code


def disconnect(server: Server, record: Any) -> None:
    """Leaves before the document is generated."""
    with server.client() as client, suppress(httpx.TimeoutException):
        client.post("/generate", json={"input": record, "max_tokens": 2000}, timeout=HOLD_S)


def hold(server: Server, data: bytes, count: int = 1) -> None:
    """Holds connections on which some bytes were sent, without reading."""
    connections = [server.connect(data) for _ in range(count)]
    time.sleep(HOLD_S)
    for connection in connections:
        connection.close()


def request_bytes(path: str, body: Any, missing: int = 0) -> bytes:
    """Returns a POST request that announces more bytes than it has."""
    content = json.dumps(body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content) + missing}\r\n\r\n{content}".encode()
    )


def nested(depth: int) -> Any:
    """Returns a list in a list, as deep as wanted."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# What abusive clients do with a server and a record; some return the status, which is to be 200 or 4xx
ABUSES: dict[str, Callable[[Server, Any], int | None]] = {
    "temperature 1e-40": lambda server, record: post(
        server, "/generate", {"input": record, "max_tokens": 10, "temperature": 1e-40}
    ),
    "top_p 1e-320": lambda server, record: post(
        server, "/generate", {"input": record, "max_tokens": 10, "temperature": 1, "top_p": 1e-320}
    ),
    "empty message": lambda server, record: post(
        server, "/v1/chat/completions", {"messages": [{"role": "user", "content": ""}]}
    ),
    "nested prompt": lambda server, record: post(server, "/v1/completions", {"prompt": "[" * 90_000}),
    "nested record": lambda server, record: post(server, "/generate", {**record, "other": nested(700)}),
    "half of a surrogate pair": lambda server, record: post(
        server, "/v1/completions", {"prompt": "x", "model": "\ud800", "stream": True}
    ),
    "long model name": lambda server, record: post(server, "/v1/completions", {"prompt": "x", "model": "m" * 400_000}),
    "disconnect": disconnect,
    "idle connections": lambda server, record: hold(server, b"", IDLE_CONNECTIONS),
    "half of the headers": lambda server, record: hold(server, b"POST /generate HTTP/1.1\r\nHost: loc"),
    "half of the body": lambda server, record: hold(server, request_bytes("/generate", record, missing=1)),
    "unread stream": lambda server, record: hold(
        server, request_bytes("/v1/completions", {"prompt": json.dumps(record), "stream": True, "max_tokens": 50})
    ),
}


def generate(server: Server, body: Any) -> dict[str, Any]:
    """Returns the document of a sound request, and its seconds."""
    start = time.monotonic()
    with server.client() as client:
        response = client.post("/generate", json=body)
    result = response.json() if response.status_code == 200 else {}
    return {"status": response.status_code, "latency_s": time.monotonic() - start, "document": result}


def sound_requests(count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Returns bodies with a record and a seed of their own each."""
    records = [row.value["input"] for row in SyntheticReports(count, seed=7).rows()]
    return [
        {
            "input": {**record, "starting_page": index + 1},
            "seed": index,
            "max_tokens": max_tokens,
            "sampling": "classic",
        }
        for index, record in enumerate(records)
    ]


def is_same(result: dict[str, Any], alone: dict[str, Any]) -> bool:
    """Whether two responses have the same document for the same record."""
    keys = ("input", "generated_output", "finish_reason", "tokens", "compiled")
    return all(result["document"].get(key, 0) == alone["document"].get(key, 1) for key in keys)


class Load:
    """Sound and abusive requests in random order.

    Args:
        server: the server that they are sent to.
        num_requests: number of requests.
        max_tokens: maximum number of tokens of a sound request's document.
    """

    def __init__(self, server: Server, num_requests: int, max_tokens: int) -> None:
        rng = random.Random(0)
        self.server = server
        self.bodies = sound_requests(num_requests, max_tokens)
        self.kinds = ["sound" if rng.random() < SOUND_SHARE else rng.choice(list(ABUSES)) for _ in self.bodies]
        self.answers: list[Any] = []

    def send(self, index: int) -> Any:
        """Sends a request, and returns its result."""
        if self.kinds[index] == "sound":
            return generate(self.server, self.bodies[index])
        return ABUSES[self.kinds[index]](self.server, self.bodies[index]["input"])

    def run_part(self, pool: ThreadPoolExecutor) -> dict[str, Any]:
        """Sends the next quarter of the requests, and returns the state of the server after it."""
        start, first = time.monotonic(), len(self.answers)
        self.answers += pool.map(self.send, range(first, first + len(self.bodies) // NUM_PARTS))
        seconds = time.monotonic() - start
        time.sleep(1)  # until connections that clients closed are closed here, too
        return {"after": len(self.answers), **self.server.measure(), "seconds": round(seconds, 1)}

    def summary(self) -> dict[str, Any]:
        """Sends each sound request again, alone, and returns how many were answered, and answered correctly."""
        indices = range(len(self.answers))
        sound = [index for index in indices if self.kinds[index] == "sound"]
        results = [self.answers[index] for index in sound]
        alone = [self.send(index) for index in sound]
        latencies_s = [result["latency_s"] for result in results]
        return {
            "sound": len(sound),
            "answered": sum(result["status"] == 200 for result in results),
            "same_as_alone": sum(map(is_same, results, alone)),
            "latency_median_s": round(statistics.median(latencies_s), 2),
            "latency_max_s": round(max(latencies_s), 2),
            "abusive": len(self.answers) - len(sound),
            "abusive_statuses": {
                kind: dict(Counter(str(self.answers[i]) for i in indices if self.kinds[i] == kind and self.answers[i]))
                for kind in ABUSES
            },
        }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=60)
    args = parser.parse_args()
    arguments = {"clients": args.clients, "requests": args.requests, "max_tokens": args.max_tokens}
    results = ResultFile(args.output, args.overwrite, arguments=arguments, cores=os.cpu_count())
    with running_server(["--client-timeout-s", "5"]) as server, ThreadPoolExecutor(args.clients) as pool:
        warm_up = sound_requests(2 * args.clients, args.max_tokens)
        list(pool.map(lambda body: generate(server, body), warm_up))
        load = Load(server, args.requests, args.max_tokens)
        states = [{"after": 0, **server.measure(), "seconds": 0.0}]
        states += [load.run_part(pool) for _ in range(NUM_PARTS)]
        summary = load.summary()
    print("| requests | RSS (MiB) | open files | threads | seconds |\n|---|---|---|---|---|")
    for state in states:
        results.add(state)
        print("|", " | ".join(map(str, state.values())), "|")
    results.add(summary)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
