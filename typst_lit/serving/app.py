"""The HTTP application: ``POST /generate``, OpenAI's ``/v1``, ``/health``, ``/metrics``, ``/docs``."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import generate_latest
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from typst_lit.errors import UserError
from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.inference.generator import Generator
from typst_lit.serving.schemas import ChatRequest, CompletionRequest, OpenAIOptions, Options
from typst_lit.serving.service import QueueFullError, Service
from typst_lit.version import __version__


class ClientLeftError(Exception):
    """Nobody waits for the answer."""


class Guard:
    """ASGI middleware: asks for the token, and turns away what is too large before it is read.

    Args:
        app: what it guards.
        token: what requests must bring; None lets all in.
        limit: bytes of the largest body.
    """

    OPEN = ("/health", "/docs", "/openapi.json")

    def __init__(self, app: ASGIApp, token: str | None, limit: int) -> None:
        self.app = app
        self.token = token
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        too_large = f"The request is larger than {self.limit >> 10} KiB."
        refusal = None
        if self.token and scope["path"] not in self.OPEN and not secrets.compare_digest(given, self.token.encode()):
            wanted = "Send the server's token: Authorization: Bearer TOKEN."
            refusal = _error(401, wanted, {"WWW-Authenticate": "Bearer"})
        elif headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > self.limit:
            refusal = _error(413, too_large)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limit:
                raise HTTPException(413, too_large)
            return message

        await self.app(scope, counted, send)


def create_app(
    generator: Generator, token: str | None = None, queue_limit: int = 64, max_body_kib: int = 1024
) -> FastAPI:
    """Returns the application.

    Args:
        generator: the loaded model.
        token: what requests must bring as ``Authorization: Bearer TOKEN``; None lets all in.
        queue_limit: documents that may wait.
        max_body_kib: largest request.
    """
    service = Service(generator, queue_limit)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="typst_lit", version=__version__, summary="Records to Typst documents.", lifespan=lifespan)
    app.state.service = service

    app.add_middleware(Guard, token=token, limit=max_body_kib << 10)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def wrong(request: Request, error: RequestValidationError | ValidationError) -> Response:
        told = []
        for each in error.errors():
            place = [str(part) for part in each["loc"] if part != "body"]
            told.append(f"field '{'.'.join(place)}': {each['msg']}" if place else f"the body: {each['msg']}")
        return _error(422, "; ".join(told))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(UserError)
    async def unusable(request: Request, error: UserError) -> Response:
        return _error(422, str(error))

    @app.exception_handler(ClientLeftError)
    async def left(request: Request, error: ClientLeftError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(QueueFullError)
    async def refused(request: Request, error: QueueFullError) -> Response:
        return _error(429, str(error), {"Retry-After": str(error.retry_after_s)})

    def attempts_for(record: object, options: Options) -> Attempts:
        fields, faults = generator.check(record, options.adapter)
        if faults:
            raise UserError("; ".join(faults))
        return generator.attempt(fields, options.adapter, **options.changes(generator.settings.max_tokens))

    def attempts_at(prompt: str, options: Options) -> Attempts:
        try:
            record = json.loads(prompt)
        except ValueError:
            record = None
        if isinstance(record, dict):
            return attempts_for(record, options)
        return generator.attempt_prompt(prompt, options.adapter, **options.changes(generator.settings.max_tokens))

    async def made(request: Request, attempts: Attempts, options: Options) -> GeneratedDocument:
        """Returns the document, or stops when the client has left."""
        making = asyncio.create_task(service.document(attempts, options.adapter or _usual(generator)))
        try:
            while not (await asyncio.wait([making], timeout=0.2))[0]:
                if await request.is_disconnected():
                    making.cancel()
            return await making
        except asyncio.CancelledError:
            making.cancel()
            raise ClientLeftError from None

    @app.post("/generate", summary="A document of a record")
    async def generate(request: Request, record: dict[str, Any]) -> dict[str, Any]:
        """The body is a record's fields; or ``{"input": {...}}`` with options beside it, such as ``temperature``."""
        options = Options()
        if isinstance(record.get("input"), dict):
            options = Options.model_validate({key: value for key, value in record.items() if key != "input"})
        return (await made(request, attempts_for(record, options), options)).to_json()

    @app.post("/v1/completions", summary="OpenAI's form")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        options = _known(generator, body)
        attempts = attempts_at(body.prompt, options)
        return await answer(request, attempts, options, "text_completion", lambda text, _: {"text": text})

    @app.post("/v1/chat/completions", summary="OpenAI's chat form")
    async def chat(request: Request, body: ChatRequest) -> Response:
        options = _known(generator, body)
        asked = next((m.content for m in reversed(body.messages) if m.role == "user"), None)
        if asked is None:
            raise UserError("field 'messages': none is of role user")
        attempts = attempts_at(asked, options)

        def choice(text: str, streamed: bool) -> dict[str, Any]:
            return {"delta" if streamed else "message": {"role": "assistant", "content": text}}

        return await answer(request, attempts, options, "chat.completion", choice)

    async def answer(
        request: Request,
        attempts: Attempts,
        options: OpenAIOptions,
        kind: str,
        choice: Callable[[str, bool], dict[str, Any]],
    ) -> Response:
        identity = {
            "id": f"cmpl-{uuid.uuid4().hex[:24]}", "created": int(time.time()), "model": options.model or "typst-lit",
        }  # fmt: skip
        if options.stream:
            service.refuse_if_full()  # while the answer's status can still say so
            attempts.most = 1  # what was sent can't be taken back
            named = {**identity, "object": kind if kind == "text_completion" else f"{kind}.chunk"}
            return StreamingResponse(streamed(attempts, options, named, choice), media_type="text/event-stream")
        document = await made(request, attempts, options)
        choices = [
            {"index": 0, "logprobs": None, "finish_reason": document.finish_reason, **choice(document.source, False)}
        ]
        body = {**identity, "object": kind, "choices": choices, "usage": _usage(attempts, document)}
        return JSONResponse({**body, "typst": _about(document)})

    async def streamed(
        attempts: Attempts,
        options: OpenAIOptions,
        identity: Mapping[str, Any],
        choice: Callable[[str, bool], dict[str, Any]],
    ) -> AsyncIterator[str]:
        texts: asyncio.Queue[str | None] = asyncio.Queue()  # all of the source so far; None once it is done
        making = asyncio.create_task(service.document(attempts, options.adapter or _usual(generator), texts.put_nowait))
        making.add_done_callback(lambda _: texts.put_nowait(None))
        sent = ""
        try:
            while (text := await texts.get()) is not None:
                text = text.removesuffix("\ufffd")  # half of a character, so far
                if text.startswith(sent) and text != sent:
                    choices = [{"index": 0, "finish_reason": None, **choice(text[len(sent) :], True)}]
                    sent = text
                    yield _event({**identity, "choices": choices})
            document = making.result()
        except (QueueFullError, UserError) as error:
            yield _event({"error": {"message": str(error), "code": 429 if isinstance(error, QueueFullError) else 422}})
            return
        finally:
            making.cancel()
        last = {"index": 0, "finish_reason": document.finish_reason, **choice("", True)}
        yield _event({**identity, "choices": [last], "typst": {**_about(document), "source": document.source}})
        if (options.stream_options or {}).get("include_usage"):
            yield _event({**identity, "choices": [], "usage": _usage(attempts, document)})
        yield "data: [DONE]\n\n"

    @app.get("/v1/models", summary="The adapters")
    async def models() -> dict[str, Any]:
        names = generator.adapters or ["typst-lit"]
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "typst-lit"} for name in names]}

    @app.get("/health", summary="Whether documents are being made")
    async def health() -> Response:
        engine = generator.engine
        state = {"status": "ok" if service.alive else "failed", "running": engine.running, "waiting": engine.waiting}
        return JSONResponse(state, 200 if service.alive else 503)

    @app.get("/metrics", summary="Counters in Prometheus' form")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(service.registry), media_type="text/plain; version=0.0.4")

    return app


def _usual(generator: Generator) -> str | None:
    return next(iter(generator.encoders))


def _known(generator: Generator, options: OpenAIOptions) -> OpenAIOptions:
    """Lets OpenAI's ``model`` name an adapter, where there is one of that name."""
    if options.adapter is None and options.model in generator.adapters:
        options.adapter = options.model
    return options


def _usage(attempts: Attempts, document: GeneratedDocument) -> dict[str, int]:
    given = len(attempts.prompt)
    return {"prompt_tokens": given, "completion_tokens": document.tokens, "total_tokens": given + document.tokens}


def _about(document: GeneratedDocument) -> dict[str, Any]:
    """Returns what OpenAI's form has no place for."""
    hidden = ("input", "generated_output", "finish_reason", "tokens")
    return {key: value for key, value in document.to_json().items() if key not in hidden}


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"error": {"message": message, "type": "invalid_request_error" if status < 500 else "server_error"}}
    return JSONResponse({**body, "detail": message}, status, dict(headers or {}))
