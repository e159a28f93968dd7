"""Base models by their hub name, from a local server: the loading code is not changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of a directory as the hub serves those of ``me/tiny``, and counts the downloads."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), RequestHandler)
        self.directory = directory
        self.downloads: Counter[str] = Counter()


class RequestHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        names = sorted(file.name for file in self.server.directory.iterdir())
        if path.startswith("/api/models/me/tiny/tree/"):
            self.respond(json.dumps([self.entry(name) for name in names]).encode())
        elif path.startswith("/api/models/me/tiny"):
            model = {"_id": "1", "id": "me/tiny", "modelId": "me/tiny", "sha": REVISION, "private": False, "tags": []}
            self.respond(json.dumps({**model, "siblings": [{"rfilename": name} for name in names]}).encode())
        elif path.startswith("/me/tiny/resolve/") and path.rsplit("/", 1)[-1] in names:
            name = path.rsplit("/", 1)[-1]
            if self.command == "GET":
                self.server.downloads[name] += 1
            body = (self.server.directory / name).read_bytes()
            self.respond(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', **{"X-Repo-Commit": REVISION})
        else:
            self.respond(b"{}", 404, **{"X-Error-Code": "EntryNotFound"})

    def entry(self, name: str) -> dict[str, object]:
        body = (self.server.directory / name).read_bytes()
        return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}

    def respond(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tiny_model) -> Iterator[Hub]:
    server = Hub(tiny_model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_one_rank_per_machine_downloads(fit_args, hub, tmp_path) -> None:
    index = fit_args.index("--model.base_model") + 1
    args = [*fit_args[:index], "me/tiny", *fit_args[index + 1 :], "--trainer.max_steps", "1", "--trainer.devices", "2"]
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "typst_lit", *args, "--trainer.strategy", "ddp"],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hub.downloads["model.safetensors"] == 1 and set(hub.downloads.values()) == {1}, hub.downloads
    config = json.loads((tmp_path / "run/adapter/best/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/tiny"
