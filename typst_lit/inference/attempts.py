"""From a request to a document: generate, compile, repair what is certain, or attempt it again; the best one counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from typst_lit.inference.engine import Engine
from typst_lit.inference.request import Completion, Request
from typst_lit.inference.sampling import document_seed
from typst_lit.inference.settings import GenerationSettings
from typst_lit.metrics.functional import content_fidelity
from typst_lit.typesetting.repairs import Repair, repair
from typst_lit.typesetting.results import CompileResult
from typst_lit.typesetting.typesetter import Typesetter

MIN_RETRY_TEMPERATURE = 0.3  # of a second attempt: greedy decoding would give the first one again


@dataclass(frozen=True)
class GeneratedDocument:
    """What was generated for a record.

    Attributes:
        input: the record's fields.
        source: the Typst source, repaired where that was necessary and certain.
        finish_reason: ``stop``, or ``length`` when the token limit cut it off.
        tokens: generated tokens, those of all attempts.
        seconds: time in the engine, of all attempts.
        attempts: how often it was generated.
        repairs: the repairs.
        result: the compiler's result; None when nothing was compiled.
        fidelity: the fraction of the record's text that is on the pages, 0 to 1; None when nothing was compiled.
        index: which of the records it is for.
        origin: where the record came from: file, and line or index.

    Example:
        >>> document = GeneratedDocument({"title": "A"}, "= A", "stop", tokens=3)
        >>> document.to_json()["generated_output"]
        '= A'
    """

    input: dict[str, Any]
    source: str
    finish_reason: str
    tokens: int = 0
    seconds: float = 0.0
    attempts: int = 1
    repairs: tuple[Repair, ...] = ()
    result: CompileResult | None = None
    fidelity: float | None = None
    index: int = 0
    origin: str = ""

    @property
    def compiled(self) -> bool | None:
        """Whether there is a PDF; None when nothing was compiled."""
        return None if self.result is None else self.result.ok

    def to_json(self) -> dict[str, Any]:
        """Returns the result as ``generate`` writes it and ``serve`` answers it."""
        result: dict[str, Any] = {
            "input": self.input,
            "generated_output": self.source,
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
        }
        if self.result is not None:
            result |= {
                "compiled": self.result.ok,
                "repairs": [str(repair) for repair in self.repairs],
                "diagnostics": [diagnostic._asdict() for diagnostic in self.result.diagnostics],
                "pages": self.result.page_count,
                "fidelity": None if self.fidelity is None else round(self.fidelity, 4),
            }
            if self.result.missing_assets:
                result["missing_assets"] = list(self.result.missing_assets)
        return result


class Attempts:
    """The attempts at one document, of which the best counts.

    Args:
        prompt: the ids of its prompt.
        fields: the record's fields; empty where there is only a prompt.
        text: the part of the record that the document should show.
        settings: how to sample; the second attempt is random even where the first is not.
        typesetter: what compiles; None for a single attempt that is not compiled.
        max_attempts: how many there may be, until the document compiles.
        adapter: name of the adapter to use.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        fields: Mapping[str, Any],
        text: str,
        settings: GenerationSettings,
        typesetter: Typesetter | None,
        max_attempts: int = 1,
        adapter: str | None = None,
    ) -> None:
        self.prompt = prompt
        self.fields = dict(fields)
        self.settings = settings
        self.typesetter = typesetter
        self.max_attempts = max_attempts if typesetter else 1
        self.adapter = adapter
        self.num_attempts = 0
        self._text = text
        self._best: tuple[tuple[bool, bool, float], GeneratedDocument] | None = None
        self._tokens = 0
        self._seconds = 0.0

    def next_request(self, on_text: Callable[[str], None] | None = None) -> Request:
        """Returns the request of the next attempt.

        Args:
            on_text: called with all of its source so far, whenever there is more of it.
        """
        settings = self.settings
        if self.num_attempts:
            settings = replace(settings, temperature=max(settings.temperature, MIN_RETRY_TEMPERATURE))
        seed = document_seed(settings.seed, self.prompt, self.num_attempts)
        self.num_attempts += 1
        return Request(self.prompt, settings, seed, self.adapter, on_text)

    def finish(self, completion: Completion) -> GeneratedDocument | None:
        """Compiles and repairs what an attempt gave.

        Returns:
            The best document so far, or None when another attempt should follow.
        """
        self._tokens += completion.tokens
        self._seconds += completion.seconds
        cut_off = completion.finish_reason == "length"
        source, result, repairs, fidelity = completion.text, None, tuple[Repair, ...](), None
        if self.typesetter:
            result, repairs = repair(self.typesetter.compile(source), self.typesetter, cut_off)
            source = result.source
            fidelity = content_fidelity(self._text, result.body) if self._text else None
        document = GeneratedDocument(
            self.fields, source, completion.finish_reason, repairs=repairs, result=result, fidelity=fidelity
        )
        rank = (bool(document.compiled), not cut_off, fidelity or 0.0)
        if self._best is None or rank > self._best[0]:
            self._best = rank, document
        good = rank[:2] == (True, True)
        if not good and self.num_attempts < self.max_attempts:
            return None
        return replace(self._best[1], tokens=self._tokens, seconds=self._seconds, attempts=self.num_attempts)


class DocumentTask:
    """A document on its way through engine and typesetter, attempt by attempt.

    Args:
        engine: what decodes; some thread must be in its `run`.
        compilers: the threads that wait for the compiler.
        attempts: the attempts at the document.
        on_text: called in the engine's thread with all of the source so far, whenever there is more of it.

    Attributes:
        future: the document, or the error of its generation. Cancelling it cancels the task.
    """

    def __init__(
        self,
        engine: Engine,
        compilers: ThreadPoolExecutor,
        attempts: Attempts,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.future: Future[GeneratedDocument] = Future()
        self._engine = engine
        self._compilers = compilers
        self._attempts = attempts
        self._on_text = on_text
        self._request: Request | None = None
        self._compilation: Future[None] | None = None
        self._submit()
        self.future.add_done_callback(self._settle)

    def cancel(self) -> None:
        """Cancels the task, and waits for the compiler if it is at work for it: the typesetter may be closed then."""
        self.future.cancel()
        if self._compilation is not None and not self._compilation.cancel():
            wait([self._compilation])

    def _submit(self) -> None:
        self._request = self._attempts.next_request(self._on_text)
        self._engine.submit(self._request).add_done_callback(self._compile)
        if self.future.cancelled():  # between two attempts
            self._engine.cancel(self._request)

    def _settle(self, future: Future[GeneratedDocument]) -> None:
        if future.cancelled():
            future.set_running_or_notify_cancel()  # for those who wait with concurrent.futures.wait
            if self._request is not None:
                self._engine.cancel(self._request)

    def _compile(self, completion: Future[Completion]) -> None:
        if completion.cancelled() or self.future.cancelled():
            self.future.cancel()
        elif (error := completion.exception()) is not None:
            self._fail(error)
        else:
            try:
                self._compilation = self._compilers.submit(self._finish, completion.result())
            except RuntimeError as shutdown:  # of the interpreter
                self._fail(shutdown)

    def _finish(self, completion: Completion) -> None:
        try:
            document = self._attempts.finish(completion)
            if document is None:
                self._submit()
                return
        except BaseException as error:
            self._fail(error)
            return
        with suppress(InvalidStateError):  # it was cancelled meanwhile
            self.future.set_result(document)

    def _fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)
