"""Errors as HTTP responses, in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from typst_lit.errors import UserError
from typst_lit.serving.schemas import ErrorResponse
from typst_lit.serving.service import TOO_DEEP, GenerationError, QueueFullError, ServiceUnavailableError

RETRY_AFTER_S = 10  # while the model is being loaded, or the server is restarted
CLIENT_CLOSED_REQUEST = 499  # nginx's status; nobody reads it
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        401: "The token is missing or wrong.",
        408: "The request body did not arrive in time.",
        413: "The request body is too large.",
        422: "The record or an option is invalid; the message names the field.",
        429: "Too many documents are waiting; `Retry-After` estimates when to try again.",
        500: "The model failed on this request.",
        503: "The model is being loaded or has failed, or the server is shutting down.",
    }.items()
}


class ClientDisconnectedError(Exception):
    """The client left before its document was generated."""


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns a response with OpenAI's ``error`` and FastAPI's ``detail``."""
    message = message.encode("utf-8", "backslashreplace").decode()  # it may quote what a client sent
    error = {"message": message, "type": "invalid_request_error" if status < 500 else "server_error"}
    return JSONResponse({"error": error, "detail": message}, status, dict(headers or {}))


def status_code(error: Exception) -> int:
    """Returns the HTTP status of an error that generation raised."""
    statuses = {QueueFullError: 429, ServiceUnavailableError: 503, UserError: 422}
    return next((status for class_, status in statuses.items() if isinstance(error, class_)), 500)


def add_error_handlers(app: FastAPI) -> None:
    """Makes an application answer errors with `error_response`."""

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def answer_invalid_request(request: Request, error: RequestValidationError | ValidationError) -> Response:
        messages = []
        for detail in error.errors():
            field = ".".join(str(part) for part in detail["loc"] if part != "body")
            messages.append(f"field '{field}': {detail['msg']}" if field else f"request body: {detail['msg']}")
        return error_response(422, "; ".join(messages))

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RecursionError)
    async def answer_deep_nesting(request: Request, error: RecursionError) -> Response:
        return error_response(422, TOO_DEEP)

    @app.exception_handler(ServiceUnavailableError)
    async def answer_unavailable(request: Request, error: ServiceUnavailableError) -> Response:
        return error_response(status_code(error), str(error), {"Retry-After": str(RETRY_AFTER_S)})

    @app.exception_handler(UserError)
    @app.exception_handler(GenerationError)
    async def answer_generation_error(request: Request, error: Exception) -> Response:
        return error_response(status_code(error), str(error))

    @app.exception_handler(QueueFullError)
    async def answer_queue_full(request: Request, error: QueueFullError) -> Response:
        return error_response(status_code(error), str(error), {"Retry-After": str(error.retry_after_s)})

    @app.exception_handler(ClientDisconnectedError)
    async def answer_nobody(request: Request, error: ClientDisconnectedError) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
