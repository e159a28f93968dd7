"""Compares a document's text with the phrases of its record and of the style, letter by letter.

At each point there may be several hypotheses of which phrase is being copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

from typst_lit.contract.record_text import BODY, FREE, RecordText
from typst_lit.contract.text_contract import TextContract

MAX_HYPOTHESES = 24
BREAK = "\0"  # among separators: where a content block, an item, a heading or a string ends
NO_PHRASE, FREE_WORD = -1, -2


class Hypothesis(NamedTuple):
    """What the text so far may be.

    Attributes:
        phrase: number of the phrase that is being copied; `NO_PHRASE` or `FREE_WORD`.
        position: how much of it was copied.
        used: the lines that were copied before, as bits.
        repeated: those that were copied a second time, as bits.
        held: phrase and position of a line that another phrase interrupts, such as a line in the cells of a table.
    """

    phrase: int = NO_PHRASE
    position: int = 0
    used: int = 0
    repeated: int = 0
    held: tuple[int, int] | None = None


class PhraseMatcher:
    """Follows which phrases a text may be copied from.

    Args:
        contract: which phrases may follow which.
        record: the phrases.

    Example:
        >>> matcher = PhraseMatcher(TextContract(2, "", 1.0), RecordText({"text": "It rains."}, "text"))
        >>> hypotheses = matcher.advance([Hypothesis()], "i", BREAK, frozenset(["body"]))
        >>> [(hypothesis.phrase, hypothesis.position) for hypothesis in hypotheses]
        [(0, 1)]
    """

    def __init__(self, contract: TextContract, record: RecordText) -> None:
        self.contract = contract
        self.record = record
        self._phrases = record.phrases
        num_required = record.required.bit_count()
        self.max_missing = num_required - ceil(contract.min_shown * num_required - 1e-6)

    def advance(
        self, hypotheses: Sequence[Hypothesis], letter: str, gap: str, sources: frozenset[str]
    ) -> tuple[Hypothesis, ...]:
        """Returns the hypotheses after another letter; empty when none of them fits.

        Args:
            hypotheses: those before it.
            letter: the letter.
            gap: the separators between it and the letter before; empty within a word.
            sources: those of the phrases that may start in this context.
        """
        following: dict[Hypothesis, None] = {}
        for hypothesis in hypotheses:
            if hypothesis.phrase >= 0:
                if continued := self._continue(hypothesis, hypothesis.phrase, hypothesis.position, letter, gap):
                    following[continued] = None
            elif hypothesis.phrase == FREE_WORD and not gap:
                following[hypothesis] = None
            if gap:
                for started in self._start(hypothesis, letter, gap, sources):
                    following[started] = None
        if len(following) <= MAX_HYPOTHESES:
            return tuple(following)
        ranked = sorted(following, key=lambda h: (h.phrase != FREE_WORD, h.used.bit_count(), h.position), reverse=True)
        free = [hypothesis for hypothesis in ranked if hypothesis.phrase == FREE_WORD][:1]
        return (*ranked[: MAX_HYPOTHESES - 1], *free)

    def _continue(self, hypothesis: Hypothesis, number: int, position: int, letter: str, gap: str) -> Hypothesis | None:
        text = self._phrases[number].text
        if position < len(text) and (text[position] == " ") != bool(gap):
            return None  # the words are not separated alike
        position += bool(gap)
        if position >= len(text) or text[position] != letter:
            return None
        return hypothesis._replace(phrase=number, position=position + 1)

    def _start(self, before: Hypothesis, letter: str, gap: str, sources: frozenset[str]) -> Iterable[Hypothesis]:
        """Yields the hypotheses in which another phrase starts with a letter."""
        if self.is_interrupted(before) and BREAK not in gap and "\n" not in gap:
            return
        before = self.completed(before)
        if before.held:
            if continued := self._continue(before, *before.held, letter, gap):
                yield continued._replace(held=None)
            if not self.contract.copied:
                before = before._replace(held=None)
        for number, position, item in self.record.starts(letter):
            if item.source not in sources:
                continue
            started = before._replace(phrase=number, position=position + 1)
            if item.source != BODY:
                yield started
            elif before.held is None:
                bit = 1 << item.line
                if before.used & bit:
                    if (
                        item.line < self.contract.repeated_lines >= before.used.bit_length()
                        and not before.repeated & bit
                    ):
                        yield started._replace(repeated=before.repeated | bit)
                elif self.is_next(item.line, before.used):
                    yield started
        if FREE in sources:
            yield before._replace(phrase=FREE_WORD, position=0)

    def is_next(self, index: int, used: int) -> bool:
        """Returns whether a line that was not copied yet may be copied now.

        Lines before the last one that was copied can't follow any more; others must not be skipped for their sake.
        """
        if not self.contract.ordered:
            return True
        skipped = self.record.required & ~used & ((1 << index) - 1)
        is_next = not skipped >> used.bit_length()
        return index >= used.bit_length() and (is_next or skipped.bit_count() <= self.max_missing)

    def deviate(self, hypotheses: Sequence[Hypothesis], gap: str, word: str) -> tuple[Hypothesis, ...]:
        """Returns the hypotheses after a word that the contract does not allow.

        It may be any word, instead of one of the record or in addition, or a word of another line.

        Args:
            hypotheses: those before the word.
            gap: what is before it.
            word: its letters so far.
        """
        following: dict[Hypothesis, None] = {}
        for hypothesis in hypotheses:
            following.update(dict.fromkeys(self._free_words(hypothesis)))
            following.update(dict.fromkeys(self._start_line(hypothesis, gap, word)))
        return tuple(following)[:MAX_HYPOTHESES]

    def _free_words(self, before: Hypothesis) -> Iterable[Hypothesis]:
        """Yields the hypotheses after a word of any text: in a line, this may replace the next one of the record."""
        yield (before := self.completed(before))._replace(phrase=FREE_WORD, position=0)
        if before.held:
            number, position = before.held
            end = self._phrases[number].text.find(" ", position + 1)
            after = before._replace(phrase=number, position=len(self._phrases[number].text) if end < 0 else end)
            yield self.completed(after._replace(held=None))._replace(phrase=FREE_WORD, position=0)

    def _start_line(self, before: Hypothesis, gap: str, word: str) -> Iterable[Hypothesis]:
        """Yields the hypotheses in which a word belongs to another line, wherever that is in the record.

        It is the first word of that line, or both lines start alike.
        """
        completed = self.completed(before)
        copied = [("", completed)]
        if self.is_interrupted(before) and self._phrases[before.phrase].source == BODY:
            copied.append((self._phrases[before.phrase].text[: before.position] + (" " if gap else ""), before))
        for text, hypothesis in copied:
            for number, position, item in self.record.starts((text + word)[0]):
                is_new = item.source == BODY and not hypothesis.used >> item.line & 1
                if is_new and item.text.startswith(text + word, position):
                    end = position + len(text + word)
                    yield hypothesis._replace(phrase=number, position=end, held=None)

    def completed(self, hypothesis: Hypothesis) -> Hypothesis:
        """Returns a hypothesis in which no phrase is copied: a complete line is used, and another one is held."""
        number = hypothesis.phrase
        if self.is_interrupted(hypothesis):
            return hypothesis._replace(phrase=NO_PHRASE, position=0, held=(number, hypothesis.position))
        if number >= 0 and self._phrases[number].source == BODY:
            used = hypothesis.used | 1 << self._phrases[number].line
            return hypothesis._replace(phrase=NO_PHRASE, position=0, used=used, held=None)
        return hypothesis

    def is_at_word_end(self, hypothesis: Hypothesis) -> bool:
        """Returns whether a word may end here."""
        text = self._phrases[hypothesis.phrase].text if hypothesis.phrase >= 0 else ""
        return not text[hypothesis.position : hypothesis.position + 1].strip()

    def separators(self, hypothesis: Hypothesis) -> str:
        """Returns what the record has after the last letter, up to the next one."""
        return self._phrases[hypothesis.phrase].separators(hypothesis.position)

    def is_interrupted(self, hypothesis: Hypothesis) -> bool:
        """Returns whether a phrase is not complete."""
        return hypothesis.phrase >= 0 and hypothesis.position < len(self._phrases[hypothesis.phrase].text)

    def used_lines(self, hypotheses: Sequence[Hypothesis]) -> int:
        """Returns the lines that were copied, as bits, by the hypothesis with the most."""
        return max((self.completed(hypothesis).used for hypothesis in hypotheses), key=int.bit_count)
