"""From a request to a document: generate, compile, repair, compare with the record; of several attempts the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from typst_lit.contract import CUT_OFF, Assessment, TextContract, assess
from typst_lit.contract.record_text import RecordText
from typst_lit.contract.text_guard import TextGuard
from typst_lit.inference.checks import PrefixChecker
from typst_lit.inference.engine import Engine
from typst_lit.inference.request import Completion, Request
from typst_lit.inference.sampling import document_seed
from typst_lit.inference.settings import GenerationSettings
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
        assessment: what the pages show of the record; None when nothing was compiled.
        rollbacks: how often decoding went back to a checkpoint, in all attempts.
        discarded: tokens that were discarded then; they are not in ``tokens``.
        contract_abandoned: whether the model could not keep the text contract, so that it was not enforced to the end.
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
    assessment: Assessment | None = None
    rollbacks: int = 0
    discarded: int = 0
    contract_abandoned: bool = False
    index: int = 0
    origin: str = ""

    @property
    def compiled(self) -> bool | None:
        """Whether there is a PDF; None when nothing was compiled."""
        return None if self.result is None else self.result.ok

    @property
    def fidelity(self) -> float | None:
        """The fraction of the record's text that is on the pages, 0 to 1; None when it is unknown."""
        return self.assessment.fidelity if self.assessment else None

    @property
    def missing_lines(self) -> tuple[str, ...] | None:
        """Lines of the record's text that are not on the pages; None when that is unknown."""
        return self.assessment.missing_lines if self.assessment else None

    @property
    def invented_words(self) -> tuple[str, ...] | None:
        """Words on the pages that are neither in the record nor in the style; None when that is unknown."""
        return self.assessment.invented_words if self.assessment else None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the document is not clean, each in a few words."""
        if self.assessment is None:
            return (CUT_OFF,) if self.finish_reason == "length" else ()
        return self.assessment.problems

    @property
    def clean(self) -> bool | None:
        """Whether it compiles as it was written and keeps the record's text; None when that is unknown.

        See `typst_lit.contract.Assessment`.
        """
        return self.assessment.clean if self.assessment else None

    @property
    def is_acceptable(self) -> bool:
        """Whether no other attempt is needed: it is clean or, where that is unknown, compiles and is not cut off."""
        if self.clean is None:
            return self.compiled is not False and self.finish_reason == "stop"
        return self.clean and self.finish_reason == "stop"

    def to_json(self) -> dict[str, Any]:
        """Returns the result as ``generate`` writes it and ``serve`` answers it."""
        result: dict[str, Any] = {
            "input": self.input,
            "generated_output": self.source,
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
            "rollbacks": self.rollbacks,
            "discarded": self.discarded,
            "contract_abandoned": self.contract_abandoned,
        }
        if self.result is not None:
            result |= {
                "compiled": self.result.ok,
                "clean": self.clean,
                "repairs": [str(repair) for repair in self.repairs],
                "diagnostics": [diagnostic._asdict() for diagnostic in self.result.diagnostics],
                "pages": self.result.page_count,
                "fidelity": None if self.fidelity is None else round(self.fidelity, 4),
                "missing_lines": _as_list(self.missing_lines),
                "invented_words": _as_list(self.invented_words),
            }
            if self.result.missing_assets:
                result["missing_assets"] = list(self.result.missing_assets)
        return result


def _as_list(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)


class Attempts:
    """The attempts at one document, of which the best counts.

    Args:
        prompt: the ids of its prompt.
        fields: the record's fields; empty where there is only a prompt.
        body_field: name of the field with the text that the document should show.
        settings: how to sample; the second attempt is random even where the first is not.
        typesetter: what compiles; None for a single attempt that is not compiled.
        max_attempts: how many there may be, until the document is clean, or compiles where there is no contract.
        adapter: name of the adapter to use.
        contract: the adapter's, if it has one. It is not used where there is only a prompt.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        fields: Mapping[str, Any],
        body_field: str,
        settings: GenerationSettings,
        typesetter: Typesetter | None,
        max_attempts: int = 1,
        adapter: str | None = None,
        contract: TextContract | None = None,
    ) -> None:
        self.prompt = prompt
        self.fields = dict(fields)
        self.settings = settings
        self.typesetter = typesetter
        self.max_attempts = max_attempts if typesetter else 1
        self.adapter = adapter
        self.contract = contract if fields else None
        self.num_attempts = 0
        self._body_field = body_field
        self._best: GeneratedDocument | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._rollbacks = self._discarded = 0

    def next_request(self, on_text: Callable[[str], None] | None = None, executor: Executor | None = None) -> Request:
        """Returns the request of the next attempt.

        Args:
            on_text: called with all of its source so far, whenever there is more of it.
            executor: the threads that wait for the compiler while it is decoded; without it, nothing is compiled then.
        """
        settings = self.settings
        if self.num_attempts:
            settings = replace(settings, temperature=max(settings.temperature, MIN_RETRY_TEMPERATURE))
        seed = document_seed(settings.seed, self.prompt, self.num_attempts)
        self.num_attempts += 1
        contract = self.contract if settings.contract else None
        guard = check = None
        if contract is not None:
            guard = TextGuard(contract, RecordText(self.fields, self._body_field, contract.style_words))
        if self.typesetter is not None and executor is not None and settings.checkpoints:
            check = PrefixChecker(self.typesetter, executor, self.fields, contract)
        may_abandon = self.num_attempts < self.max_attempts and on_text is None
        return Request(self.prompt, settings, seed, self.adapter, on_text, guard, check, may_abandon)

    def finish(self, completion: Completion) -> GeneratedDocument | None:
        """Compiles and repairs what an attempt gave.

        Returns:
            The best document so far, or None when another attempt should follow.
        """
        self._tokens += completion.tokens
        self._seconds += completion.seconds
        self._rollbacks += completion.rollbacks
        self._discarded += completion.discarded
        document = replace(self._document(completion), contract_abandoned=completion.contract_abandoned)
        if self._best is None or _rank(document) > _rank(self._best):
            self._best = document
        if not self._best.is_acceptable and self.num_attempts < self.max_attempts:
            return None
        return replace(
            self._best,
            tokens=self._tokens,
            seconds=self._seconds,
            attempts=self.num_attempts,
            rollbacks=self._rollbacks,
            discarded=self._discarded,
        )

    def _document(self, completion: Completion) -> GeneratedDocument:
        """Compiles and repairs the source of a completion, and compares it with the record."""
        finish_reason = completion.finish_reason
        if self.typesetter is None:
            return GeneratedDocument(self.fields, completion.text, finish_reason)
        compiled = self.typesetter.compile(completion.text)
        result, repairs = repair(compiled, self.typesetter, cut_off=finish_reason == "length")
        assessment = assess(self.fields, self._body_field, result, self.contract, repairs, finish_reason)
        return GeneratedDocument(
            self.fields, result.source, finish_reason, repairs=repairs, result=result, assessment=assessment
        )


def _rank(document: GeneratedDocument) -> tuple[Any, ...]:
    """Returns a key by which attempts are compared; that of the best one is the largest."""
    return (
        document.finish_reason != "abandoned",
        bool(document.clean),
        bool(document.compiled),
        document.finish_reason != "length",
        document.fidelity or 0.0,
        -len(document.invented_words or ()),
        -len(document.repairs),
    )


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
        self._request = self._attempts.next_request(self._on_text, self._compilers)
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
