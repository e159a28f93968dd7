"""``typst-lit serve``: documents over HTTP."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket

from typst_lit.cli.model_arguments import ModelArguments
from typst_lit.cli.parser import Command
from typst_lit.errors import UserError
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
TOKEN_VARIABLE = "TYPST_LIT_TOKEN"


@Command
def serve(
    *,
    model: ModelArguments,
    generation: GenerationSettings,
    typesetting: Typesetter,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    queue: int = 64,
    max_body_kib: int = 1024,
) -> None:
    """Serve documents over HTTP, also with an OpenAI-compatible API.

    POST /generate takes a record, /v1 is compatible with OpenAI's API, and /docs describes both.

    Args:
        model: Which model generates.
        generation: How it is sampled.
        typesetting: The limits of each document.
        host: Address to listen on; any that other machines can reach needs a token.
        port: Port to listen on; 0 takes a free one.
        token: What requests must present as a bearer token. Better set in the variable TYPST_LIT_TOKEN.
        queue: Maximum number of waiting documents; further requests get 429.
        max_body_kib: Maximum size of a request, in KiB; larger ones get 413.
    """
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if not token and not _is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines.",
            setting="host",
            hint=f"Set a token that requests must present, in {TOKEN_VARIABLE} or with `token`.",
        )
    if queue < 0:
        raise UserError(f"must be 0 or more, not {queue}.", setting="queue")
    if max_body_kib < 1:
        raise UserError(f"must be 1 or more, not {max_body_kib}.", setting="max_body_kib")
    model.validate()
    try:
        import uvicorn

        from typst_lit.serving.app import create_app
    except ImportError as error:
        raise UserError(f"serving needs {error.name}.", hint="pip install 'typst-lit[serve]'") from error
    listening = _listen(host, port)  # before a model is loaded in vain
    with typesetting, listening:
        app = create_app(model.load(generation, typesetting), token, queue, max_body_kib)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        address = f"[{host}]" if ":" in host else host
        log.info("Serving on http://%s:%d; /docs describes the interface.", address, listening.getsockname()[1])
        # uvicorn finishes the running requests and then raises the signal again, when nothing is left to do
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"can't listen on {host}, port {port} ({error}).", hint="Choose another `port`.") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
