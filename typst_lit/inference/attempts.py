"""From what a model wrote to a document: compiled, mended where that is certain, or tried again; the best is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typst_lit.inference.decoder import Row
from typst_lit.inference.engine import Completion, seed_of
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.metrics.functional import content_fidelity
from typst_lit.typesetting.repairs import Repair, repair
from typst_lit.typesetting.results import CompileResult
from typst_lit.typesetting.typesetter import Typesetter

RETRY_TEMPERATURE = 0.3  # at least, for a second attempt: greedy decoding would give the first again


@dataclass(frozen=True)
class GeneratedDocument:
    """What came of a record.

    Attributes:
        input: the record's fields.
        source: the Typst source, mended where that was needed and certain.
        finish_reason: ``stop``, or ``length`` when the token limit cut it off.
        tokens: generated tokens, those of all attempts.
        seconds: time in the engine, of all attempts.
        attempts: how often it was generated.
        repairs: what was mended.
        result: what the compiler made of it; None when nothing was compiled.
        fidelity: how much of the record's text stands on the pages, 0 to 1; None when nothing was compiled.
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

    @property
    def compiled(self) -> bool | None:
        """Whether there is a PDF; None when nothing was compiled."""
        return None if self.result is None else self.result.ok

    def to_json(self) -> dict[str, Any]:
        """Returns it as ``generate`` writes it and ``serve`` answers."""
        made: dict[str, Any] = {
            "input": self.input,
            "generated_output": self.source,
            "finish_reason": self.finish_reason,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
        }
        if self.result is not None:
            made |= {
                "compiled": self.result.ok,
                "repairs": [str(repair) for repair in self.repairs],
                "diagnostics": [each._asdict() for each in self.result.diagnostics],
                "pages": self.result.page_count,
                "fidelity": None if self.fidelity is None else round(self.fidelity, 4),
            }
            if self.result.missing_assets:
                made["missing_assets"] = list(self.result.missing_assets)
        return made


class Attempts:
    """The tries at one record, of which the best is kept.

    Args:
        prompt: the ids of its prompt.
        fields: the record; empty where there is only a prompt.
        text: the part of the record that the document should show.
        settings: how to sample; the second try is random even where the first is not.
        typesetter: what compiles; None for a single try that is not compiled.
        most: how many tries at most.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        fields: Mapping[str, Any],
        text: str,
        settings: GenerationSettings,
        typesetter: Typesetter | None,
        most: int = 1,
    ) -> None:
        self.prompt = prompt
        self.fields = dict(fields)
        self.settings = settings
        self.typesetter = typesetter
        self.most = most if typesetter else 1
        self.count = 0
        self._text = text
        self._best: tuple[tuple[bool, bool, float], GeneratedDocument] | None = None
        self._tokens = 0
        self._seconds = 0.0

    def row(self) -> Row:
        """Returns the next try."""
        settings = self.settings
        if self.count:
            settings = replace(settings, temperature=max(settings.temperature, RETRY_TEMPERATURE))
        self.count += 1
        return Row(self.prompt, settings, seed_of(settings.seed, self.prompt, self.count - 1))

    def judge(self, completion: Completion) -> GeneratedDocument | None:
        """Compiles and mends what a try gave; returns the best document, or None when another try is worth it."""
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
        if not good and self.count < self.most and completion.finish_reason != "cancelled":
            return None
        return replace(self._best[1], tokens=self._tokens, seconds=self._seconds, attempts=self.count)
