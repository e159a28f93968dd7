"""Documents as streams of text, while they are generated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
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
        GenerationError: when the model failed on this document.
        ServiceUnavailableError: when it can't generate any longer.
    """
    # Only the latest text is retained: a client that does not read would accumulate a copy per token.
    latest, sent, has_changed = "", "", asyncio.Event()

    def set_latest(text: str) -> None:
        nonlocal latest
        latest = text
        has_changed.set()

    task = asyncio.create_task(service.generate(attempts, set_latest))
    task.add_done_callback(lambda _: has_changed.set())
    try:
        while True:
            await has_changed.wait()
            has_changed.clear()
            is_done, text = task.done(), latest.removesuffix(REPLACEMENT_CHARACTER)
            if text.startswith(sent) and text != sent:
                delta = TextDelta(text[len(sent) :])
                sent = text
                yield delta
            if is_done:
                break
        yield task.result()
    finally:
        task.cancel()


def server_sent_event(data: Mapping[str, Any]) -> str:
    """Returns one event of a ``text/event-stream``."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
