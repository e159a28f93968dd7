"""``typst-lit serve``: documents over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import sys

import torch

from typst_lit.cli.listening import listen
from typst_lit.cli.model_arguments import ModelArguments
from typst_lit.cli.parser import Command
from typst_lit.errors import UserError
from typst_lit.inference.settings import GenerationSettings
from typst_lit.serving.hosts import LOOPBACK_HOSTS, is_loopback
from typst_lit.serving.limits import ServerLimits
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
TOKEN_VARIABLE = "TYPST_LIT_TOKEN"


@Command
def serve(
    *,
    model: ModelArguments,
    generation: GenerationSettings,
    typesetting: Typesetter,
    limits: ServerLimits,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allowed_hosts: list[str] = [],  # noqa: B006
    log_requests: bool = True,
) -> None:
    """Serve documents over HTTP, also with an OpenAI-compatible API.

    POST /generate takes a record, /v1 is compatible with OpenAI's API, and /docs describes both.

    Args:
        model: Which model generates.
        generation: How it is sampled.
        typesetting: The limits of each document.
        limits: What clients may take.
        host: Address to listen on; any that other machines can reach needs a token.
        port: Port to listen on; 0 takes a free one.
        token: What requests must present as a bearer token. Better set in the variable TYPST_LIT_TOKEN.
        allowed_hosts: Without a token, requests must be sent to this machine's own name or address, not by web pages of
            other sites; names of more hosts to accept, such as that of a proxy.
        log_requests: Log a line per request.
    """
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if not token and not is_loopback(host):
        raise UserError(
            f"{host} can be reached from other machines.",
            setting="host",
            hint=f"Set a token that requests must present, in {TOKEN_VARIABLE} or with `token`.",
        )
    model.check_numbers()
    try:
        from typst_lit.serving.app import create_app
        from typst_lit.serving.server import Server
    except ImportError as error:
        raise UserError(f"serving needs {error.name}.", hint="pip install 'typst-lit[serve]'") from error
    app = create_app(
        lambda: model.load(generation, typesetting),
        token,
        limits,
        None if token else [*allowed_hosts, *({host} - {*LOOPBACK_HOSTS})],
        log_requests,
        on_failure=lambda error: server.fail(error),
    )
    server = Server(app, limits)
    listening = listen(host, port)
    with typesetting, listening:
        address = f"[{host}]" if ":" in host else host
        log.info("Serving on http://%s:%d; /docs describes the interface.", address, listening.getsockname()[1])
        # uvicorn raises the signal that ended it again, when nothing is left to do
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listening])
    if isinstance(server.error, torch.AcceleratorError):
        first_line = str(server.error).partition("\n")[0]
        raise UserError(f"the accelerator has failed ({first_line}).", hint="Start the server again.") from server.error
    if server.error is not None:
        raise server.error
    status = 0 if server.exit_signal is None else 128 + server.exit_signal
    if app.state.runner.is_loading:
        os._exit(status)  # Python itself would abort: it can't end while another thread runs native code
    if status:
        sys.exit(status)
