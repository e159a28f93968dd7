"""The server's own routes: ``/generate``, ``/health``, ``/metrics``; and what they share with those of ``/v1``."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.serving.errors import ERROR_RESPONSES, ClientDisconnectedError
from typst_lit.serving.schemas import GenerationOptions
from typst_lit.serving.service import GenerationService

SECONDS_BETWEEN_CONNECTION_CHECKS = 0.2
router = APIRouter(tags=["typst-lit"])
public_router = APIRouter(tags=["typst-lit"])  # needs no token


def get_service(request: Request) -> GenerationService:
    """Returns the application's service, for ``Depends``."""
    return request.app.state.service


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
        while not (await asyncio.wait([task], timeout=SECONDS_BETWEEN_CONNECTION_CHECKS))[0]:
            if await request.is_disconnected():
                task.cancel()
        return await task
    except asyncio.CancelledError:
        task.cancel()
        raise ClientDisconnectedError from None


@router.post("/generate", summary="Generate the document of a record", responses=ERROR_RESPONSES)
async def generate(request: Request, service: Service, record: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """The body is either a record's fields, or `{"input": {...}, "temperature": 0.2, ...}`: a record with options.

    The options are `adapter`, `max_tokens`, `temperature`, `top_p`, `top_k`, `repetition_penalty`, `seed` and
    `attempts`. The response is a result in the format of `typst-lit generate`.
    """
    options = GenerationOptions()
    if isinstance(record.get("input"), dict):
        options = GenerationOptions.model_validate({key: value for key, value in record.items() if key != "input"})
    attempts = service.attempts_for_record(record, options)
    return (await generate_while_connected(request, service, attempts)).to_json()


@public_router.get("/health", summary="Check that documents are being generated")
async def health(service: Service) -> Response:
    """The status is 503 once the thread that runs the model has failed."""
    engine = service.generator.engine
    state = {
        "status": "ok" if service.is_alive else "failed",
        "running": engine.num_running,
        "waiting": engine.num_waiting,
    }
    return JSONResponse(state, 200 if service.is_alive else 503)


@router.get("/metrics", summary="Get metrics in the Prometheus text format", response_class=PlainTextResponse)
async def metrics(service: Service) -> Response:
    return PlainTextResponse(service.metrics.render(), media_type="text/plain; version=0.0.4")
