"""The server's own routes: ``/generate``, ``/health``, ``/metrics``, ``/docs``; and what all routes share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from typst_lit.serving.docs_page import CONTENT_SECURITY_POLICY, render_docs
from typst_lit.serving.errors import ERROR_RESPONSES, ClientDisconnectedError
from typst_lit.serving.runner import ServiceRunner
from typst_lit.serving.schemas import EXAMPLE_RECORD, GenerationOptions
from typst_lit.serving.service import GenerationService

if TYPE_CHECKING:
    from typst_lit.inference.attempts import Attempts, GeneratedDocument

CONNECTION_CHECK_INTERVAL_S = 0.2
router = APIRouter(tags=["typst-lit"])
public_router = APIRouter(tags=["typst-lit"])  # needs no token


def get_runner(request: Request) -> ServiceRunner:
    """Returns what loads and runs the application's service, for ``Depends``."""
    return request.app.state.runner


def get_service(request: Request) -> GenerationService:
    """Returns the application's service, for ``Depends``.

    Raises:
        ServiceUnavailableError: while there is none that works.
    """
    return get_runner(request).service


Runner = Annotated[ServiceRunner, Depends(get_runner)]
Service = Annotated[GenerationService, Depends(get_service)]


async def generate_while_connected(
    request: Request, service: GenerationService, attempts: Attempts
) -> GeneratedDocument:
    """Generates a document, and cancels it when the client disconnects.

    Raises:
        ClientDisconnectedError: when it did.
    """
    task = asyncio.create_task(service.generate(attempts))
    try:
        while not (await asyncio.wait([task], timeout=CONNECTION_CHECK_INTERVAL_S))[0]:
            if await request.is_disconnected():
                raise ClientDisconnectedError
        document = task.result()
    finally:
        task.cancel()
    request.state.tokens = document.tokens  # for the log
    return document


@router.post("/generate", summary="Generate the document of a record", responses=ERROR_RESPONSES)
async def generate(
    request: Request, service: Service, record: Annotated[dict[str, Any], Body(examples=[EXAMPLE_RECORD])]
) -> dict[str, Any]:
    """The body is either a record's fields, or `{"input": {...}, "temperature": 0.2, ...}`: a record with options.

    The options are `adapter`, `max_tokens`, `temperature`, `top_p`, `top_k`, `repetition_penalty`, `seed`,
    `sampling` and `attempts`. The response is a result in the format of `typst-lit generate`: `clean` says whether the
    document compiles as it was written and keeps the record's text; `missing_lines` and `invented_words` say what it
    does not keep.
    """
    options = GenerationOptions()
    if isinstance(record.get("input"), dict):
        options = GenerationOptions.model_validate({key: value for key, value in record.items() if key != "input"})
    attempts = service.attempts_for_record(record, options)
    return (await generate_while_connected(request, service, attempts)).to_json()


@public_router.get("/health", summary="Check that documents can be generated")
async def health(runner: Runner) -> Response:
    """The status is `ok`; or `loading` or `failed`, with HTTP status 503."""
    state: dict[str, Any] = {"status": runner.status}
    if (engine := runner.engine) is not None:
        state |= {"running": engine.num_running, "waiting": engine.num_waiting}
    return JSONResponse(state, 200 if runner.status == "ok" else 503)


@router.get("/metrics", summary="Get metrics in the Prometheus text format", response_class=PlainTextResponse)
async def metrics(service: Service) -> Response:
    return PlainTextResponse(service.metrics.render(), media_type="text/plain; version=0.0.4")


@public_router.get("/", include_in_schema=False)
async def index(request: Request, runner: Runner) -> Response:
    """Says what is here: a page for browsers, JSON for others."""
    if "text/html" in request.headers.get("accept", ""):
        return docs(request)
    app = request.app
    about = {"name": app.title, "version": app.version, "status": runner.status, "docs": "/docs"}
    return JSONResponse({**about, "paths": list(app.openapi()["paths"])})


@public_router.get("/docs", include_in_schema=False)
def docs(request: Request) -> Response:
    """Describes all routes, and sends requests to them; nothing is loaded from other servers."""
    page = render_docs(request.app.openapi())
    return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})
