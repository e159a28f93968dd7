"""The HTTP application: ``POST /generate``, the OpenAI-compatible ``/v1``, ``/health``, ``/metrics``, ``/docs``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware.trustedhost import TrustedHostMiddleware

from typst_lit.serving import openai_api, routes
from typst_lit.serving.errors import add_error_handlers
from typst_lit.serving.hosts import LOOPBACK_HOSTS
from typst_lit.serving.limits import ServerLimits
from typst_lit.serving.middleware import AuthAndLimitsMiddleware, RequestLogMiddleware, SameOriginMiddleware
from typst_lit.serving.runner import ServiceRunner
from typst_lit.version import __version__

if TYPE_CHECKING:
    from typst_lit.inference.generator import Generator


def create_app(
    generator: Generator | Callable[[], Generator],
    token: str | None = None,
    limits: ServerLimits | None = None,
    allowed_hosts: Sequence[str] | None = None,
    log_requests: bool = False,
    on_failure: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """Returns the ASGI application that serves a generator.

    Args:
        generator: a generator; or a function that loads it, which is called in the background when the application
            starts. Until then, ``/health`` answers 503.
        token: the token that requests must send as ``Authorization: Bearer TOKEN``; None lets all requests in.
        limits: what clients may take. Those of connections and of the shutdown need `typst_lit.serving.server.Server`.
        allowed_hosts: the only names, in addition to the loopback's, that requests may have in ``Host`` and
            ``Origin``, against web pages that send requests to this machine; None allows all.
        log_requests: log a line per request.
        on_failure: called with the error when the generator can't be loaded, or can't generate any longer; may be
            called in any thread.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> from typst_lit import Generator
        >>> generator = Generator.load(base_model="typst-nano", use_4bit=False, compile=False)
        >>> with TestClient(create_app(generator)) as client:
        ...     client.get("/health").json()
        {'status': 'ok', 'running': 0, 'waiting': 0}
    """
    limits = limits or ServerLimits()
    load_generator = generator if callable(generator) else lambda: generator
    runner = ServiceRunner(load_generator, limits.queue, on_failure)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runner.start(in_background=callable(generator))
        yield
        runner.stop()

    app = FastAPI(
        title="typst_lit",
        version=__version__,
        summary="Generates Typst documents from JSON records.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from another server
        redoc_url=None,
    )
    app.state.runner = runner
    # the last one that is added is the first one to see a request
    app.add_middleware(
        AuthAndLimitsMiddleware,
        token=token,
        max_body_bytes=limits.max_body_kib << 10,
        body_timeout_s=limits.client_timeout_s,
    )
    if allowed_hosts is not None:
        app.add_middleware(SameOriginMiddleware, allowed_hosts=allowed_hosts)
        hosts = [*LOOPBACK_HOSTS, *allowed_hosts]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(RequestLogMiddleware, enabled=log_requests)
    add_error_handlers(app)
    # The middleware checks the token; this declares it in /openapi.json, which gives /docs its token field.
    security = [Security(HTTPBearer(auto_error=False))] if token else []
    for router in (routes.router, openai_api.router):
        app.include_router(router, dependencies=security)
    app.include_router(routes.public_router)
    return app
