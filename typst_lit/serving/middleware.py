"""What happens before and after a request is answered: its checks, its limits, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from typst_lit.serving.errors import error_response

log = logging.getLogger(__name__)
PUBLIC_PATHS = ("/", "/health", "/docs", "/openapi.json")
MAX_LOGGED_PATH_CHARS = 200
CLOSE = {"Connection": "close"}


class RequestLogMiddleware:
    """ASGI middleware that logs one line per request: method, path, status, seconds, and generated tokens if any.

    It also answers the requests that are cancelled when the server's time for finishing them is over.

    Args:
        app: the application it wraps.
        enabled: whether to log.
    """

    def __init__(self, app: ASGIApp, enabled: bool) -> None:
        self.app = app
        self.enabled = enabled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None
        start = time.monotonic()

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        except asyncio.CancelledError:
            if status is None:
                await error_response(503, "The server is shutting down.", CLOSE)(scope, receive, send_and_record)
        finally:
            if self.enabled:
                self._log(scope, status, time.monotonic() - start)

    def _log(self, scope: Scope, status: int | None, seconds: float) -> None:
        # as it was sent, percent-encoded: the decoded path may contain line breaks
        path = scope.get("raw_path", b"").decode("ascii", "replace")[:MAX_LOGGED_PATH_CHARS]
        tokens = scope.get("state", {}).get("tokens")
        suffix = "" if tokens is None else f", {tokens} tokens"
        log.info("%s %s %s, %.2f s%s", scope["method"], path, status or 500, seconds, suffix)


class SameOriginMiddleware:
    """ASGI middleware that refuses requests from web pages of other sites.

    A page that the user of this machine visits may send requests to the loopback address as well. Their ``Origin`` is
    another than the ``Host`` they are sent to.

    Args:
        app: the application it wraps.
        allowed_hosts: names of hosts whose pages may send requests as well.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(Headers(scope=scope)):
            message = "Web pages of other sites may not use this server. The setting `allowed_hosts` lets pages in."
            await error_response(403, message)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return True
        try:
            url = urlsplit(origin)
        except ValueError:
            return False
        return bool(url.netloc) and (url.netloc == headers.get("host") or url.hostname in self.allowed_hosts)


class AuthAndLimitsMiddleware:
    """ASGI middleware that requires the bearer token, and limits the size of request bodies and the time they take.

    It is a middleware and not a dependency of the routes because FastAPI reads a body before it calls dependencies.

    Args:
        app: the application it wraps.
        token: the token that requests must send; None lets all requests in.
        max_body_bytes: size limit of a request's body, whether or not the request declares its length.
        body_timeout_s: seconds until a body must have arrived.
    """

    def __init__(self, app: ASGIApp, token: str | None, max_body_bytes: int, body_timeout_s: float) -> None:
        self.app = app
        self.token = token
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        num_bytes, is_complete = 0, False
        deadline = time.monotonic() + self.body_timeout_s

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:  # what follows is at most the client's disconnection
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                text = f"The request body did not arrive within {self.body_timeout_s:g} s."
                raise HTTPException(408, text, CLOSE) from None
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
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
