"""The HTTP application: ``POST /generate``, the OpenAI-compatible ``/v1``, ``/health``, ``/metrics``, ``/docs``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from typst_lit.inference.generator import Generator
from typst_lit.serving import openai_api, routes
from typst_lit.serving.errors import add_error_handlers
from typst_lit.serving.middleware import AuthAndSizeLimitMiddleware
from typst_lit.serving.service import GenerationService
from typst_lit.version import __version__


def create_app(
    generator: Generator, token: str | None = None, max_waiting: int = 64, max_body_kib: int = 1024
) -> FastAPI:
    """Returns the ASGI application that serves a generator.

    Args:
        generator: a generator with its model loaded.
        token: the token that requests must send as ``Authorization: Bearer TOKEN``; None lets all requests in.
        max_waiting: maximum number of documents that wait for the model; further requests are answered with 429.
        max_body_kib: size limit of a request's body, in KiB.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> generator = Generator.load(base_model="typst-nano", use_4bit=False, compile=False)
        >>> with TestClient(create_app(generator)) as client:
        ...     client.get("/health").json()
        {'status': 'ok', 'running': 0, 'waiting': 0}
    """
    service = GenerationService(generator, max_waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="typst_lit",
        version=__version__,
        summary="Generates Typst documents from JSON records.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(AuthAndSizeLimitMiddleware, token=token, max_body_bytes=max_body_kib << 10)
    add_error_handlers(app)
    # The middleware checks the token; this declares it in /openapi.json, which gives /docs its "Authorize" button.
    security = [Security(HTTPBearer(auto_error=False))] if token else []
    for router in (routes.router, openai_api.router):
        app.include_router(router, dependencies=security)
    app.include_router(routes.public_router)
    return app
