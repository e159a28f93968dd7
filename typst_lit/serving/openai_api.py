"""The OpenAI-compatible API: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/models``."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from typst_lit.errors import UserError
from typst_lit.serving.errors import ERROR_RESPONSES, status_code
from typst_lit.serving.routes import Service, generate_while_connected
from typst_lit.serving.schemas import ChatRequest, CompletionRequest, OpenAIOptions
from typst_lit.serving.service import GenerationError, GenerationService, QueueFullError, ServiceUnavailableError
from typst_lit.serving.streaming import TextDelta, server_sent_event, stream_document

if TYPE_CHECKING:
    from typst_lit.inference.attempts import Attempts, GeneratedDocument

MODEL_WITHOUT_ADAPTER = "typst-lit"
router = APIRouter(prefix="/v1", tags=["OpenAI-compatible API"])


class CompletionFormat:
    """How ``/v1/completions`` shapes a text."""

    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def choice(self, text: str) -> dict[str, Any]:
        return {"text": text}

    chunk_choice = choice


class ChatFormat(CompletionFormat):
    """How ``/v1/chat/completions`` shapes a text."""

    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def choice(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def chunk_choice(self, text: str) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": text}}


@router.post("/completions", summary="Generate a document from a prompt", responses=ERROR_RESPONSES)
async def create_completion(request: Request, service: Service, body: CompletionRequest) -> Response:
    """The prompt is a record as JSON, or a rendered prompt. `typst` in the response has the compiler's results."""
    return await _answer(request, service, body, body.prompt, CompletionFormat())


@router.post("/chat/completions", summary="Generate a document from a chat message", responses=ERROR_RESPONSES)
async def create_chat_completion(request: Request, service: Service, body: ChatRequest) -> Response:
    """The last user message is a record as JSON; other messages are ignored."""
    prompt = next((message.content for message in reversed(body.messages) if message.role == "user"), None)
    if prompt is None:
        raise UserError("field 'messages': contains no message with role 'user'")
    return await _answer(request, service, body, prompt, ChatFormat())


@router.get("/models", summary="List the adapters")
async def list_models(service: Service) -> dict[str, Any]:
    """The first one is the default."""
    names = service.generator.adapters or [MODEL_WITHOUT_ADAPTER]
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "typst-lit"} for name in names]}


async def _answer(
    request: Request, service: GenerationService, options: OpenAIOptions, prompt: str, shape: CompletionFormat
) -> Response:
    if options.adapter is None and options.model in service.generator.adapters:
        options.adapter = options.model
    attempts = service.attempts_for_prompt(prompt, options)
    header = {
        "id": f"cmpl-{uuid.uuid4().hex[:24]}",
        "created": int(time.time()),
        "model": options.model or MODEL_WITHOUT_ADAPTER,
    }
    if options.stream:
        service.check_capacity()  # while the response's status can still be 429
        header["object"] = shape.chunk_object_name
        events = _stream(request, service, attempts, options, header, shape)
        return StreamingResponse(events, media_type="text/event-stream")
    document = await generate_while_connected(request, service, attempts)
    choice = {
        "index": 0,
        "logprobs": None,
        "finish_reason": document.finish_reason,
        **shape.choice(document.source),
    }
    body = {**header, "object": shape.object_name, "choices": [choice], "usage": _usage(attempts, document)}
    return JSONResponse({**body, "typst": _typst_results(document)})


async def _stream(
    request: Request,
    service: GenerationService,
    attempts: Attempts,
    options: OpenAIOptions,
    header: Mapping[str, Any],
    shape: CompletionFormat,
) -> AsyncIterator[str]:
    """Yields server-sent events: the text in pieces, then the compiler's results, then the usage if asked for."""

    def chunk(text: str, finish_reason: str | None = None) -> dict[str, Any]:
        return {**header, "choices": [{"index": 0, "finish_reason": finish_reason, **shape.chunk_choice(text)}]}

    try:
        async with aclosing(stream_document(service, attempts)) as items:
            async for item in items:
                if isinstance(item, TextDelta):
                    yield server_sent_event(chunk(item.text))
                    continue
                request.state.tokens = item.tokens
                results = {**_typst_results(item), "source": item.source}
                yield server_sent_event({**chunk("", item.finish_reason), "typst": results})
                if (options.stream_options or {}).get("include_usage"):
                    yield server_sent_event({**header, "choices": [], "usage": _usage(attempts, item)})
    except (QueueFullError, UserError, GenerationError, ServiceUnavailableError) as error:
        yield server_sent_event({"error": {"message": str(error), "code": status_code(error)}})
        return
    yield "data: [DONE]\n\n"


def _usage(attempts: Attempts, document: GeneratedDocument) -> dict[str, int]:
    prompt_tokens = len(attempts.prompt)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": document.tokens,
        "total_tokens": prompt_tokens + document.tokens,
    }


def _typst_results(document: GeneratedDocument) -> dict[str, Any]:
    """Returns the results that OpenAI's format has no keys for."""
    openai_keys = ("input", "generated_output", "finish_reason", "tokens")
    return {key: value for key, value in document.to_json().items() if key not in openai_keys}
