"""Checks that come before a request's body is read."""

from __future__ import annotations

import secrets

from fastapi import HTTPException
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from typst_lit.serving.errors import error_response

PUBLIC_PATHS = ("/health", "/docs", "/openapi.json")


class AuthAndSizeLimitMiddleware:
    """ASGI middleware that requires the bearer token and limits the size of request bodies.

    It is a middleware and not a dependency of the routes because FastAPI reads a body before it calls dependencies.

    Args:
        app: the application it wraps.
        token: the token that requests must send; None lets all requests in.
        max_body_bytes: size limit of a request's body, whether or not the request declares its length.
    """

    def __init__(self, app: ASGIApp, token: str | None, max_body_bytes: int) -> None:
        self.app = app
        self.token = token
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        await self.app(scope, receive_limited, send)

    @property
    def _too_large(self) -> str:
        return f"The request body is larger than {self.max_body_bytes >> 10} KiB."

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self.token and scope["path"] not in PUBLIC_PATHS:
            token = headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(token.encode(), self.token.encode()):
                message = "Send the server's token in the header `Authorization: Bearer TOKEN`."
                return error_response(401, message, {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            return error_response(413, self._too_large)
        return None
