"""The thread that decodes, and how requests hand their work to it.

Requests that arrive together share a batch (`typst_lit.inference.engine.Engine`), and a client that leaves frees its
place.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.inference.decoder import Row
from typst_lit.inference.engine import Completion, Job
from typst_lit.inference.generator import Generator

log = logging.getLogger(__name__)
IDLE_S = 0.5  # the decoding thread looks at the clock this often when nothing waits


class QueueFullError(Exception):
    """Too many documents wait already.

    Attributes:
        retry_after_s: when there may be room.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"Too many documents wait already; try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class Service:
    """The thread that decodes, and how requests hand their work to it.

    Args:
        generator: the loaded model.
        queue_limit: documents that may wait; more are refused.
    """

    def __init__(self, generator: Generator, queue_limit: int) -> None:
        self.generator = generator
        self.queue_limit = queue_limit
        self.documents = 0  # under way or waiting
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._decode, name="decoding", daemon=True)
        self.registry = CollectorRegistry()
        self._done = Counter("typst_lit_documents", "Documents", ["finish_reason"], registry=self.registry)
        self._failures = Counter("typst_lit_not_compiled", "Documents that do not compile", registry=self.registry)
        self._refused = Counter("typst_lit_refused", "Requests refused as the queue was full", registry=self.registry)
        self._tokens = Counter("typst_lit_tokens", "Generated tokens", registry=self.registry)
        self._seconds = Histogram(
            "typst_lit_seconds", "Seconds from request to document", registry=self.registry,
            buckets=(0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600),
        )  # fmt: skip
        for name, what, value in (
            ("typst_lit_waiting", "Documents that wait", lambda: generator.engine.waiting),
            ("typst_lit_running", "Documents that are decoded", lambda: generator.engine.running),
        ):
            Gauge(name, what, registry=self.registry).set_function(value)
        self._mean_seconds = 5.0  # of a document, lately

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """Whether documents are being made."""
        return self._thread.is_alive()

    def _decode(self) -> None:
        engine = self.generator.engine
        while not self._stopping:
            self._wake.clear()
            try:
                busy = engine.pump()
            except Exception as error:  # memory ran out, most likely: those under way fail, the server goes on
                log.exception("Decoding failed")
                engine.fail(error)
                busy = True
            if not busy:
                self._wake.wait(IDLE_S)

    def refuse_if_full(self) -> None:
        """Refuses a document when too many wait.

        Raises:
            QueueFullError: saying when to come back.
        """
        if self.documents >= self.queue_limit + self.generator.engine.batch_size:
            self._refused.inc()
            rounds = self.documents / self.generator.engine.batch_size
            raise QueueFullError(max(1, math.ceil(rounds * self._mean_seconds)))

    async def document(
        self, attempts: Attempts, adapter: str | None, on_text: Callable[[str], None] | None = None
    ) -> GeneratedDocument:
        """Makes a document, and gives its place up when the caller is cancelled.

        Raises:
            QueueFullError: when too many wait.
        """
        self.refuse_if_full()
        self.documents += 1
        began = time.monotonic()
        try:
            while True:
                completion = await self._completion(attempts.row(), adapter, on_text)
                self._tokens.inc(completion.tokens)
                document = await asyncio.to_thread(attempts.judge, completion)
                if document is not None:
                    break
        finally:
            self.documents -= 1
        seconds = time.monotonic() - began
        self._seconds.observe(seconds)
        self._mean_seconds = 0.8 * self._mean_seconds + 0.2 * seconds
        self._done.labels(document.finish_reason).inc()
        self._failures.inc(document.compiled is False)
        return document

    async def _completion(self, row: Row, adapter: str | None, on_text: Callable[[str], None] | None) -> Completion:
        loop, context = asyncio.get_running_loop(), copy_context()
        future: asyncio.Future[Completion] = loop.create_future()

        def resolve(job: Job) -> None:
            if future.done():
                return
            if job.error is not None:
                future.set_exception(job.error)
            elif job.completion is not None:
                future.set_result(job.completion)

        job = Job(
            row,
            adapter,
            on_done=lambda job: _threadsafe(loop, context, resolve, job),
            on_text=(lambda text: _threadsafe(loop, context, on_text, text)) if on_text else None,
        )
        self.generator.engine.submit(job)
        self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            self.generator.engine.cancel(job)
            self._wake.set()
            raise


def _threadsafe(loop: asyncio.AbstractEventLoop, context: Context, call: Callable[..., None], *args: Any) -> None:
    # in the context of who waits: the web page keeps in it which visitor it writes to
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *args, context=context)
