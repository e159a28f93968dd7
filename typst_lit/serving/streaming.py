"""Documents as streams of text, while they are generated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.serving.service import GenerationService

REPLACEMENT_CHARACTER = "\ufffd"  # decodes from the first bytes of a character whose other bytes are still to come


class TextDelta(NamedTuple):
    """A piece of a document's source that continues the pieces before it."""

    text: str


async def stream_document(
    service: GenerationService, attempts: Attempts
) -> AsyncGenerator[TextDelta | GeneratedDocument, None]:
    """Yields the source in pieces as they are generated, and then the document.

    The document's own source may differ from the pieces: it may have been repaired. Closing the iterator cancels the
    generation.

    Raises:
        QueueFullError: when too many documents are waiting.
        UserError: when the request is invalid.
        GenerationError: when the model failed.
    """
    texts: asyncio.Queue[str | None] = asyncio.Queue()  # the whole source so far, each time; None ends the queue
    task = asyncio.create_task(service.generate(attempts, texts.put_nowait))
    task.add_done_callback(lambda _: texts.put_nowait(None))
    sent = ""
    try:
        while (text := await texts.get()) is not None:
            text = text.removesuffix(REPLACEMENT_CHARACTER)
            if text.startswith(sent) and text != sent:
                delta = TextDelta(text[len(sent) :])
                sent = text
                yield delta
        yield task.result()
    finally:
        task.cancel()


def server_sent_event(data: Mapping[str, Any]) -> str:
    """Returns one event of a ``text/event-stream``."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
