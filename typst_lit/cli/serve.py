"""``typst-lit serve``: documents over HTTP."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from typst_lit.cli.generate import add_model_arguments, load
from typst_lit.cli.parser import CommandParser
from typst_lit.errors import UserError

log = logging.getLogger(__name__)
TOKEN_VARIABLE = "TYPST_LIT_TOKEN"


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit serve", description=run.__doc__)
    add_model_arguments(made)
    made.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; others need a token.")
    made.add_argument("--port", type=int, default=8000, help="Port to listen on; 0 takes a free one.")
    made.add_argument(
        "--token", type=str | None, default=None, help=f"What requests must bring; better in {TOKEN_VARIABLE}."
    )
    made.add_argument("--queue", type=int, default=64, help="Documents that may wait; more are refused with 429.")
    made.add_argument("--max-body-kib", type=int, default=1024, help="Largest request; larger ones get 413.")
    return made


def run(args: Sequence[str]) -> None:
    """Serves documents over HTTP: POST /generate takes a record; /v1 speaks OpenAI's form; /docs describes all."""
    made = parser()
    config = made.instantiate_classes(made.parse_args(list(args)))
    token = config.token or os.environ.get(TOKEN_VARIABLE) or None
    if not token and not _is_loopback(config.host):
        raise UserError(
            f"--host {config.host} can be reached from other machines: set a token that requests must bring, in "
            f"{TOKEN_VARIABLE} or with --token."
        )
    if config.queue < 0:
        raise UserError(f"--queue must be 0 or more, not {config.queue}.")
    if config.max_body_kib < 1:
        raise UserError(f"--max-body-kib must be 1 or more, not {config.max_body_kib}.")
    try:
        import uvicorn

        from typst_lit.serving.app import create_app
    except ImportError as error:
        raise UserError(f"serve needs {error.name}: pip install 'typst-lit[serve]'") from error
    listening = _listen(config.host, config.port)
    with config.typesetting, listening:
        app = create_app(load(config), token, config.queue, config.max_body_kib)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        host = f"[{config.host}]" if ":" in config.host else config.host
        log.info("Serving on http://%s:%d; /docs describes the interface.", host, listening.getsockname()[1])
        # uvicorn finishes what runs, and then raises the signal again, when nothing is left to do
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Returns the open socket, before a model is loaded for nothing."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: can't listen there ({error}). Name another --port.") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
