"""The one loop that decodes: a queue of requests, continuous batching, and the recovery from errors."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from typst_lit.errors import UserError
from typst_lit.inference.constraints import REPLACEMENT_CHARACTER
from typst_lit.inference.decoder import BaseDecoder
from typst_lit.inference.request import Completion, Request
from typst_lit.inference.settings import DEFAULT_BATCH_SIZE
from typst_lit.model.oom import is_out_of_memory

log = logging.getLogger(__name__)


class Engine:
    """Decodes the submitted requests in batches; as soon as one is done, the next one joins.

    Requests may be submitted and cancelled from any thread. Some thread must be in `run` for them to be decoded; it may
    be the one that waits for them.

    When memory runs out, the batch size is halved, and what was running is retried from the beginning; the batch size
    is restored when the engine is idle. After any other error of a step, the requests that were running are retried
    one by one, so that only the one that causes it fails. What a request generates does not change by that. An error of
    the device itself is final: it fails all requests, and those that are submitted later.

    Args:
        decoder: what decodes.
        tokenizer: its tokenizer.
        batch_size: documents that are decoded at the same time.

    Example:
        >>> from typst_lit.inference import GenerationSettings, Generator
        >>> engine = Generator.load(base_model="typst-nano", use_4bit=False).engine
        >>> request = Request([5, 6, 7], GenerationSettings(max_tokens=2))
        >>> future = engine.submit(request)
        >>> engine.run(until=future.done)
        >>> future.result().tokens <= 2
        True
    """

    def __init__(
        self, decoder: BaseDecoder, tokenizer: PreTrainedTokenizerBase, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._changed = threading.Condition()  # guards the queue and the driver, and wakes the threads in `run`
        self._waiting: deque[Request] = deque()
        self._driving = False
        self._failure: Exception | None = None  # why nothing can be decoded any longer
        # What follows is used by the thread in `run` that decodes.
        self._running: list[Request] = []
        self._max_running = batch_size  # less than batch_size after memory ran out
        self._adapter: str | None = None  # of the requests that run: one forward pass has one adapter

    def submit(self, request: Request) -> Future[Completion]:
        """Puts a request at the end of the queue and returns the future of its completion."""
        if not request.prompt:
            _reject(request, UserError("the prompt has no tokens."))
            return request.future
        with self._changed:
            if self._failure is None:
                self._waiting.append(request)
                request.future.add_done_callback(lambda _: self._settle(request))
                self._changed.notify_all()
            else:
                _reject(request, self._failure)
        return request.future

    def cancel(self, request: Request) -> None:
        """Cancels a request's future; the request leaves before the next step. Cancelling the future does the same."""
        request.future.cancel()
        with self._changed:
            if not self._driving:
                self._drop_cancelled()

    def fail(self, error: Exception) -> None:
        """Fails all requests, and those that are submitted later: nothing can be decoded any longer."""
        with self._changed:
            self._failure = error
            requests = [*self._running, *self._waiting]
            self._running, self._waiting = [], deque()
        for request in requests:
            _reject(request, error)

    def wake(self) -> None:
        """Makes the threads in `run` check their conditions, after something changed that is not the engine's."""
        with self._changed:
            self._changed.notify_all()

    @property
    def num_waiting(self) -> int:
        """Requests that have not started."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are being decoded."""
        return len(self._running)

    @property
    def num_tokens(self) -> int:
        """Tokens so far of the requests that are being decoded."""
        return sum(request.num_generated for request in list(self._running))

    def run(self, until: Callable[[], bool]) -> None:
        """Decodes all that is submitted, until a condition holds.

        One thread decodes at a time. Another one that calls this waits until its own condition holds, or takes over
        when the first one leaves.

        Args:
            until: the condition, checked between steps; while there is nothing to decode, after `submit` and `wake`.

        Raises:
            torch.AcceleratorError: when the device can't be used any longer; all requests then have failed.
        """
        with self._changed:
            while True:
                if until():
                    return
                if not self._driving:
                    break
                self._changed.wait()
            self._driving = True
        try:
            while not until():
                if not self._step():
                    with self._changed:
                        if not self._waiting and not until():
                            self._changed.wait()
        finally:
            with self._changed:
                self._driving = False
                self._changed.notify_all()

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Decodes requests in this thread and returns their completions in order.

        Raises:
            Exception: the error of the first request that failed.
        """
        futures = [self.submit(request) for request in requests]
        try:
            self.run(until=lambda: all(future.done() for future in futures))
            return [future.result() for future in futures]
        finally:
            for request in requests:
                self.cancel(request)

    def _step(self) -> bool:
        """Decodes some tokens of every running request; returns False when there is nothing to decode."""
        try:
            self._drop_cancelled()
            self._admit()
            if self._running:
                self.decoder.step()
            for request in list(self._running):
                self._report(request)
        except torch.AcceleratorError as error:
            self.fail(error)
            raise
        except Exception as error:
            failure = _without_traceback(error)
        else:
            if not self._running and not self._waiting:
                self._max_running = self.batch_size
            return bool(self._running or self._waiting)
        self._recover(failure)  # outside of the except block, which holds the tensors of the step
        return True

    def _report(self, request: Request) -> None:
        """Passes on what a step gave: text so far, or the completion."""
        if request.on_text and request.num_confirmed > request.num_reported:
            request.num_reported = request.num_confirmed
            try:
                request.on_text(self._text(request, request.num_reported))
            except Exception as error:
                self._remove([request])
                _reject(request, error)
                return
        if request.finish_reason is not None:
            self._running.remove(request)
            tokens = request.num_generated + (request.finish_reason == "stop")
            seconds = time.monotonic() - request.started_at
            tracker = request.tracker
            completion = Completion(
                self._text(request) + request.closers,
                tokens,
                request.finish_reason,
                seconds,
                request.passes,
                tracker.num_rollbacks if tracker else 0,
                tracker.num_discarded if tracker else 0,
                request.guard is not None and tracker is not None and not tracker.has_contract,
            )
            with suppress(InvalidStateError):  # it was cancelled meanwhile
                request.future.set_result(completion)

    def _admit(self) -> None:
        """Lets waiting requests join the running ones."""
        while (request := self._next()) is not None:
            try:
                if request.adapter is not None and request.adapter != self._adapter:
                    self.decoder.set_adapter(request.adapter)
                self._adapter = request.adapter
                request.started_at = time.monotonic()
                self.decoder.add([request])
            except torch.AcceleratorError:
                self._running.append(request)  # so that it fails with the others
                raise
            except Exception as error:
                failure = _without_traceback(error)
            else:
                self._running.append(request)
                continue
            if not self._running or isinstance(failure, UserError):
                _reject(request, failure)
                continue
            if is_out_of_memory(failure):
                self._reduce_batch_size(len(self._running) + 1, failure)
            else:
                request.isolated = True
            self._retry([request])

    def _next(self) -> Request | None:
        """Takes the next request from the queue that can join the running ones."""
        with self._changed:
            while self._waiting and self._waiting[0].future.done():
                self._waiting.popleft()  # it was cancelled while it ran, and then was to be retried
            if not self._waiting:
                return None
            request = self._waiting[0]
            if self._running and (
                len(self._running) >= self._max_running
                or request.adapter != self._adapter  # those of the other adapter finish first, so that none starves
                or request.isolated
                or self._running[0].isolated
            ):
                return None
            return self._waiting.popleft()

    def _recover(self, error: Exception) -> None:
        """Retries what was running when a step failed; a request that ran alone fails."""
        running = list(self._running)
        self._remove(running)
        if len(running) == 1:
            self._max_running = self.batch_size  # what the request took is free again
            _reject(running[0], error)
            return
        if is_out_of_memory(error):
            self._reduce_batch_size(len(running), error)
        else:
            log.warning(
                "Decoding %d documents failed (%s: %s). Retrying them one by one.",
                len(running),
                type(error).__name__,
                error,
            )
            for request in running:
                request.isolated = True
        self._retry(running)

    def _reduce_batch_size(self, num_requests: int, error: Exception) -> None:
        self._max_running = max(1, num_requests // 2)
        log.warning(
            "Out of memory while decoding %d documents (%s). Retrying with a batch size of %d.",
            num_requests,
            str(error).partition("\n")[0],
            self._max_running,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _retry(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.restart()
        with self._changed:
            self._waiting.extendleft(reversed(requests))

    def _drop_cancelled(self) -> None:
        if cancelled := [request for request in self._running if request.future.cancelled()]:
            self._remove(cancelled)

    def _remove(self, requests: Sequence[Request]) -> None:
        """Stops decoding some of the running requests."""
        self.decoder.remove(requests)
        self._running = [request for request in self._running if request not in requests]

    def _settle(self, request: Request) -> None:
        """Removes a request whose future is done, and wakes the threads in `run`; called in any thread."""
        with self._changed:
            if request.future.cancelled():
                request.future.set_running_or_notify_cancel()  # for those who wait with concurrent.futures.wait
                with suppress(ValueError):
                    self._waiting.remove(request)
            self._changed.notify_all()

    def _text(self, request: Request, num_tokens: int | None = None) -> str:
        ids = request.output[:num_tokens]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        is_tracked = request.tracker is not None
        return text.removesuffix(REPLACEMENT_CHARACTER) if is_tracked else text  # the last character may be incomplete


def _reject(request: Request, error: Exception) -> None:
    with suppress(InvalidStateError):  # it was cancelled meanwhile
        request.future.set_exception(error)


def _without_traceback(error: Exception) -> Exception:
    """Removes an error's tracebacks, whose frames would keep the tensors of a step in memory."""
    chain: Any = error
    while chain is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
    return error
