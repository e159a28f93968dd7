"""The service between many clients and one model: a thread runs the engine, and requests await their documents.

Requests that arrive together share batches (`typst_lit.inference.engine.Engine`). A client that disconnects frees its
slot in the batch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

import torch

from typst_lit.errors import UserError
from typst_lit.inference.sampling import InvalidScoresError
from typst_lit.serving.metrics import ServiceMetrics
from typst_lit.typesetting.process import CompilerStartError

if TYPE_CHECKING:
    # not at run time: transformers takes seconds to import, in which the server can't answer yet
    from typst_lit.inference.attempts import Attempts, GeneratedDocument
    from typst_lit.inference.generator import Generator
    from typst_lit.serving.schemas import GenerationOptions

log = logging.getLogger(__name__)
FAILED = "The model has failed, and generates nothing until the server is restarted."
TOO_DEEP = "the record is nested too deeply."
INITIAL_MEAN_SECONDS = 5.0  # of a document, before any was measured
MEAN_SECONDS_DECAY = 0.8
STOP_TIMEOUT_S = 5.0
MAX_ATTEMPTS = 16  # that a request may ask for
MAX_NESTING = 100  # levels of lists and objects in a record


class QueueFullError(Exception):
    """Too many documents are waiting.

    Attributes:
        retry_after_s: estimated seconds until there is capacity again.

    >>> str(QueueFullError(retry_after_s=5))
    'Too many documents are waiting; try again in 5 s.'
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"Too many documents are waiting; try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class GenerationError(Exception):
    """The model failed on a request that was valid."""


class ServiceUnavailableError(Exception):
    """Nothing can be generated: the model is being loaded, or it has failed."""


class GenerationService:
    """Runs a generator's engine in a thread, for any number of asyncio tasks that await documents.

    Args:
        generator: a generator with its model loaded.
        max_waiting: maximum number of documents that wait for the model, in addition to the batch that is running.
        on_failure: called in the engine's thread when nothing can be generated any longer.

    Attributes:
        error: why nothing can be generated any longer; None while it can.

    Example:
        >>> from typst_lit.inference import GenerationSettings, Generator
        >>> settings = GenerationSettings(max_tokens=4)
        >>> generator = Generator.load(base_model="typst-nano", use_4bit=False, compile=False, settings=settings)
        >>> service = GenerationService(generator, max_waiting=64)
        >>> service.start()
        >>> asyncio.run(service.generate(generator.attempts_at_prompt("Any text"))).attempts
        1
        >>> service.stop()
    """

    def __init__(
        self, generator: Generator, max_waiting: int, on_failure: Callable[[Exception], None] | None = None
    ) -> None:
        self.generator = generator
        self.max_waiting = max_waiting
        self.error: Exception | None = None
        self._on_failure = on_failure
        self.metrics = ServiceMetrics(generator.engine)
        self._num_documents = 0  # running or waiting
        self._mean_seconds = INITIAL_MEAN_SECONDS
        self._stopping = False
        self._thread = threading.Thread(target=self._run_engine, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the engine's thread after its current step."""
        self._stopping = True
        self.generator.engine.wake()
        self._thread.join(timeout=STOP_TIMEOUT_S)

    def attempts_for_record(self, record: object, options: GenerationOptions) -> Attempts:
        """Returns the attempts at a record's document.

        Raises:
            UserError: when the record is invalid or the adapter is unknown.
        """
        check_json(record)
        fields, errors = self.generator.check(record, options.adapter)
        if errors:
            raise UserError("; ".join(errors))
        settings = options.settings(self.generator.settings_for(options.adapter))
        return _check_prompt(self.generator.attempts(fields, options.adapter, settings, options.max_attempts))

    def attempts_for_prompt(self, prompt: str, options: GenerationOptions) -> Attempts:
        """Returns the attempts at the document of a prompt: a record as JSON, or else a rendered prompt.

        Raises:
            UserError: when the record is invalid or the adapter is unknown.
        """
        try:
            record = json.loads(prompt)
        except RecursionError:
            raise UserError(TOO_DEEP) from None
        except ValueError:
            record = None
        if isinstance(record, dict):
            return self.attempts_for_record(record, options)
        settings = options.settings(self.generator.settings_for(options.adapter))
        attempts = self.generator.attempts_at_prompt(prompt, options.adapter, settings, options.max_attempts)
        return _check_prompt(attempts)

    def check_capacity(self) -> None:
        """Checks that there is capacity for one more document.

        Raises:
            QueueFullError: when there is not.
        """
        batch_size = self.generator.engine.batch_size
        if self._num_documents >= self.max_waiting + batch_size:
            self.metrics.refused.inc()
            num_batches = self._num_documents / batch_size
            raise QueueFullError(max(1, math.ceil(num_batches * self._mean_seconds)))

    async def generate(self, attempts: Attempts, on_text: Callable[[str], None] | None = None) -> GeneratedDocument:
        """Generates a document; cancelling the task frees its slot in the batch.

        Args:
            attempts: of `attempts_for_record` or `attempts_for_prompt`.
            on_text: called in the event loop with the whole source so far, whenever it has grown.

        Raises:
            QueueFullError: when too many documents are waiting.
            UserError: when the prompt is too long for the model.
            GenerationError: when the model failed on this document.
            ServiceUnavailableError: when the model has failed, or the document can't be compiled now.
        """
        self.check_capacity()
        self._num_documents += 1
        start = time.monotonic()
        loop, context = asyncio.get_running_loop(), copy_context()
        report = (lambda text: _call_in_loop(loop, context, on_text, text)) if on_text else None
        try:
            document = await asyncio.wrap_future(self.generator.submit(attempts, report))
        except Exception as error:
            if self.error or isinstance(error, torch.AcceleratorError):
                raise ServiceUnavailableError(FAILED) from error
            if isinstance(error, CompilerStartError):
                log.warning("%s", error)
                raise ServiceUnavailableError(str(error)) from error
            if isinstance(error, UserError) and not isinstance(error, InvalidScoresError):
                raise
            message = f"The document could not be generated ({type(error).__name__}: {error})."
            log.warning("%s", message)
            raise GenerationError(message) from error
        finally:
            self._num_documents -= 1
        seconds = time.monotonic() - start
        self._mean_seconds = MEAN_SECONDS_DECAY * self._mean_seconds + (1 - MEAN_SECONDS_DECAY) * seconds
        self.metrics.tokens.inc(document.tokens)
        self.metrics.record_document(document, seconds)
        return document

    def _run_engine(self) -> None:
        engine = self.generator.engine
        try:
            engine.run(until=lambda: self._stopping)
        except Exception as error:
            self.error = error
            engine.fail(error)
            if self._on_failure is None:
                log.exception(FAILED)
            else:
                self._on_failure(error)


def check_json(value: object) -> None:
    """Checks that a value can be processed and sent as JSON again.

    Raises:
        UserError: when it is nested too deeply, or has half of a surrogate pair.
    """
    level = [value]
    for _ in range(MAX_NESTING):
        children: list[object] = []
        for item in level:
            if isinstance(item, dict):
                children += [*item, *item.values()]
            elif isinstance(item, list):
                children += item
            elif isinstance(item, str) and not _is_unicode(item):
                raise UserError("the record contains half of a surrogate pair (\\ud800 to \\udfff).")
        if not children:
            return
        level = children
    raise UserError(TOO_DEEP)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_prompt(attempts: Attempts) -> Attempts:
    if not attempts.prompt:
        raise UserError("the prompt has no tokens.")
    return attempts


def _call_in_loop(loop: asyncio.AbstractEventLoop, context: Context, call: Callable[..., None], *args: Any) -> None:
    # In the caller's context: Streamlit keeps the browser session that it writes to in a context variable.
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *args, context=context)
