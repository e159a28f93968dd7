"""Follows the text of a document while it is written, and says what may come next under a text contract.

The visible text is compared with the phrases of the record and of the style (`contract.record_text`), letter by letter.
At each point there may be several hypotheses of which phrase is being copied; text that refutes all of them is
rejected. In learning (`contract.learning`), the same guard reads the training outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from typst_lit.contract.record_text import BODY, FREE, STYLE, Phrase, RecordText, is_separator, normalized
from typst_lit.contract.text_contract import TextContract
from typst_lit.typesetting.syntax import (
    START,
    Mode,
    Phase,
    Piece,
    PieceKind,
    SyntaxState,
    context,
    read_pieces,
)

MAX_HYPOTHESES = 24
MAX_NEWLINES, MAX_WHITE_SPACE = 4, 40  # in a row, where text is exact
_WHITE_SPACE = " \t\n\r"
MIN_COPIED = 12  # letters of a line, after which the rest of it is certain
BREAK = "\0"  # among separators: where a content block, an item, a heading or a string ends
MARK = "\1"  # among separators: where markup or code is
NO_PHRASE, FREE_WORD = -1, -2
_VISIBLE = (PieceKind.TEXT, PieceKind.STRING, PieceKind.MATH, PieceKind.RAW)
_NAME_START = re.compile(r"\.?([^\W\d][\w-]*)?\Z")
_CODE_TOKEN = re.compile(r"[^\W\d][\w-]*|\d[\w.%]*")  # a name, or a number with its unit


def names_in_code(piece: Piece) -> list[str]:
    """Returns the names in a piece of code; one that starts an expression also with its ``#``.

    >>> names_in_code(Piece(PieceKind.CODE, "text", "#")), names_in_code(Piece(PieceKind.CODE, "size: 12pt, ink"))
    (['#text', 'text'], ['size', 'ink'])
    """
    if piece.text == "$":
        return ["$"]
    names = [token for token in _CODE_TOKEN.findall(piece.text) if not token[0].isdigit()]
    return [f"#{piece.text}", *names] if piece.context == "#" else names


def mark_kind(mark: str) -> str:
    """Returns the character that stands for a kind of markup; ``1`` for a number.

    >>> mark_kind("=="), mark_kind("12.")
    ('=', '1')
    """
    return "1" if mark[0].isdigit() else mark[0]


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


class TextState(NamedTuple):
    """What is known of the text so far.

    Attributes:
        hypotheses: what it may be; empty is not possible.
        gap: the separators since the last letter.
        name: the characters of a name in code that is not complete.
    """

    hypotheses: tuple[Hypothesis, ...] = (Hypothesis(),)
    gap: str = BREAK
    name: str = ""


class TextGuard:
    """Decides which text may follow in one document.

    Args:
        contract: what is enforced.
        record: the texts of the document's record.

    Example:
        >>> from typst_lit.typesetting.syntax import START, read_pieces
        >>> contract = TextContract(2, "", 1.0, contexts=(("", ("body",)),), copied=True)
        >>> guard = TextGuard(contract, RecordText({"text": "It rains in May.\\nIt snows."}, "text"))
        >>> def accepts(source: str) -> bool:
        ...     return guard.read(TextState(), read_pieces(START, source + " ")[1]) is not None
        >>> accepts("It rains"), accepts("*It* snows. #v(1em)\\n\\nIt rains"), accepts("It hails")
        (True, True, False)
    """

    def __init__(self, contract: TextContract, record: RecordText) -> None:
        self.contract = contract
        self.record = record
        self._phrases = record.phrases
        self._contexts = {name: frozenset(sources) for name, sources in contract.contexts}
        known = frozenset().union(*self._contexts.values()) - {FREE}
        is_free = not self._contexts or FREE in self._contexts.get("", known)
        self._other_contexts = known | {FREE} if is_free else known
        self._names = frozenset(contract.names)
        characters = {character for item in self._phrases for character in item.raw if not character.isascii()}
        self._other_characters = [character.encode("utf-8", "ignore") for character in characters]
        # what may stand before the first word of a phrase
        self._leading = {
            character for item in self._phrases if item.source != STYLE for character in item.separators(0)
        }

    # Reading

    def read(self, state: TextState, pieces: Iterable[Piece]) -> TextState | None:
        """Returns the state after pieces of the source; None when they must not follow."""
        for piece in pieces:
            if piece.kind in _VISIBLE:
                following = self._read_text(state, piece)
            elif piece.kind is PieceKind.BREAK:
                following = self._read_break(state, is_string=bool(piece.text))
            elif piece.kind is PieceKind.MARK:
                following = (
                    state._replace(gap=state.gap and state.gap + MARK) if self._may_mark(state, piece.text) else None
                )
            else:
                following = self._read_code(state, piece)
            if following is None:
                return None
            state = following
        return state

    def may_begin(self, state: TextState, syntax: SyntaxState, start: bytes) -> bool:
        """Returns whether a character that is not ASCII may follow, of which the first bytes are known."""
        sources = self._contexts.get(context(syntax.stack), self._other_contexts)
        return FREE in sources or any(character.startswith(start) for character in self._other_characters)

    def may_continue(self, state: TextState, syntax: SyntaxState) -> bool:
        """Returns whether the last characters, which depend on what follows, can become text that may follow.

        Without this, a text would be found out only after more of it, when nothing can follow any longer.
        """
        pending, top = syntax.pending, syntax.stack[-1]
        if not pending:
            return True
        if top.mode is Mode.EXPRESSION:
            if top.value is Phase.START:
                return self._is_name_start(pending, "#")
            name = _NAME_START.match(pending)
            return not name or self._is_name_start(name[1] or "", "")
        if top.mode not in _TEXT_MODES or pending[0] == "\\":
            return True
        if pending[0].isdigit() and "1" in self.contract.marks:
            return True
        if not pending[0].isalnum() and self._may_mark(state, pending):
            return True
        piece = Piece(PieceKind.TEXT, pending, context(syntax.stack))
        return self._read_text(state, piece) is not None

    def _read_break(self, state: TextState, is_string: bool) -> TextState | None:
        """Returns the state after the end of some text; that of a string has complete phrases only."""
        if is_string:
            hypotheses = tuple(h for h in state.hypotheses if not self._is_interrupted(h))
        else:
            hypotheses = tuple(h for h in state.hypotheses if state.gap or self._is_at_word_end(h))
        return TextState(hypotheses, state.gap + BREAK) if hypotheses else None

    def _is_at_word_end(self, hypothesis: Hypothesis) -> bool:
        text = self._phrases[hypothesis.phrase].text if hypothesis.phrase >= 0 else ""
        return not text[hypothesis.position : hypothesis.position + 1].strip()

    def _separators(self, hypothesis: Hypothesis) -> str:
        return self._phrases[hypothesis.phrase].separators(hypothesis.position)

    def _is_interrupted(self, hypothesis: Hypothesis) -> bool:
        return hypothesis.phrase >= 0 and hypothesis.position < len(self._phrases[hypothesis.phrase].text)

    def _read_text(self, state: TextState, piece: Piece) -> TextState | None:
        hypotheses, gap = state.hypotheses, state.gap
        sources = self._contexts.get(piece.context, self._other_contexts)
        is_exact = self.contract.exact and piece.kind is not PieceKind.STRING and FREE not in sources
        for character in piece.text:
            letters = normalized(character)
            if not letters:
                if is_separator(character):
                    if not gap:
                        hypotheses = tuple(filter(self._is_at_word_end, hypotheses))
                    if not hypotheses or (is_exact and not self._may_separate(hypotheses, gap, character)):
                        return None
                    gap += character
                continue
            for letter in letters:
                hypotheses = self._advance(hypotheses, letter, gap, sources)
                if not hypotheses:
                    return None
                gap = ""
        return TextState(hypotheses, gap)

    def _may_separate(self, hypotheses: Sequence[Hypothesis], gap: str, character: str) -> bool:
        """Returns whether a character may be between words here: white space, or one that the record has there."""
        if character in _WHITE_SPACE:
            run = gap[len(gap.rstrip(_WHITE_SPACE)) :]
            return run.count("\n") < MAX_NEWLINES and len(run) < MAX_WHITE_SPACE
        return any(
            character in self._leading
            or (h.phrase >= 0 and gap.count(character) < self._separators(h).count(character))
            for h in hypotheses
        )

    def _advance(
        self, hypotheses: Sequence[Hypothesis], letter: str, gap: str, sources: frozenset[str]
    ) -> tuple[Hypothesis, ...]:
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
        number = before.phrase
        if self._is_interrupted(before):
            if BREAK not in gap and "\n" not in gap:
                return
            before = before._replace(phrase=NO_PHRASE, position=0, held=(number, before.position))
        elif number >= 0 and self._phrases[number].source == BODY:
            before = before._replace(used=before.used | 1 << self._phrases[number].line, held=None)
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
                    if item.line < self.contract.repeated_lines and not before.repeated & bit:
                        yield started._replace(repeated=before.repeated | bit)
                elif self._is_next(item.line, before.used):
                    yield started
        if FREE in sources:
            yield before._replace(phrase=FREE_WORD, position=0)

    def _is_next(self, index: int, used: int) -> bool:
        """Returns whether a line that was not copied yet may be copied now."""
        if not self.contract.ordered:
            return True
        if self.contract.complete:
            return not ~used & ((1 << index) - 1)  # all lines before it were copied
        return index >= used.bit_length()

    def _may_mark(self, state: TextState, mark: str) -> bool:
        """Returns whether markup may start here: within a line only where training pairs insert some, and not where
        the record has the same character as text."""
        if self.contract.marks and mark_kind(mark) not in self.contract.marks:
            return False
        if not all(h.phrase >= 0 and h.position for h in state.hypotheses) or BREAK in state.gap or "\n" in state.gap:
            return True
        gaps = [self._separators(hypothesis) for hypothesis in state.hypotheses]
        breaks = self.contract.break_characters
        is_in_line = breaks is not None and all(map(self._is_interrupted, state.hypotheses))
        is_break = any(character in gap for gap in gaps for character in breaks or "")
        if is_in_line and not (is_break and mark_kind(mark) in self.contract.inner_marks):
            return False
        is_special = mark in "#$*_`<@" and mark not in self.contract.unescaped
        return not is_special or not all(mark in gap[len(state.gap) :] for gap in gaps)

    def _read_code(self, state: TextState, piece: Piece) -> TextState | None:
        if not self._names:
            return state
        if piece.context == "#":
            return state._replace(name="") if f"#{piece.text}" in self._names else None
        if piece.text == "$" and "$" not in self._names:
            return None
        text, name = state.name + piece.text, ""
        for match in _CODE_TOKEN.finditer(text):
            if match[0][0].isdigit():
                name = match[0] if match.end() == len(text) else ""
            elif match.end() == len(text):
                name = match[0]
                if not self._is_name_start(name, ""):
                    return None
            elif match[0] not in self._names:
                return None
        return state._replace(name=name)

    def _is_name_start(self, text: str, prefix: str) -> bool:
        """Returns whether a name in code may start with a text."""
        return not self._names or any(name.startswith(prefix + text) for name in self._names)

    def is_between_phrases(self, state: TextState) -> bool:
        """Returns whether no phrase is being copied, so that what follows depends on the used lines only."""
        if BREAK not in state.gap and "\n" not in state.gap:
            return False
        return not any(map(self._is_interrupted, state.hypotheses))

    def interrupted_separators(self, state: TextState) -> set[str]:
        """Returns the characters of a line next to which it is interrupted here, if one is being copied."""
        if len(state.hypotheses) != 1:
            return set()
        (hypothesis,) = state.hypotheses
        item = self._phrases[hypothesis.phrase] if hypothesis.phrase >= 0 else None
        if item is None or item.source != BODY or hypothesis.position >= len(item.text):
            return set()
        separators = item.separators(hypothesis.position)
        return {*"".join(separators.split())} or {separators[:1] or item.text[0]}

    # What is certain, and what is missing

    def forced_text(self, state: TextState) -> str:
        """Returns text of the record that has to follow, since only one line starts as what was written; or nothing."""
        breaks = self.contract.break_characters
        if breaks is None or not self.contract.copied or len(state.hypotheses) != 1:
            return ""
        (hypothesis,) = state.hypotheses
        if hypothesis.phrase < 0 or hypothesis.position < MIN_COPIED or BREAK in state.gap:
            return ""
        item = self._phrases[hypothesis.phrase]
        if item.source != BODY or hypothesis.position >= len(item.text):
            return ""
        start = item.offsets[hypothesis.position - 1] + 1
        if not item.raw.startswith(state.gap, start) or any(character in breaks for character in state.gap):
            return ""
        rest = item.raw[start + len(state.gap) :]
        end = next((index for index, character in enumerate(rest) if character in breaks), len(rest))
        return rest[:end].rstrip()  # white space before markup is not certain

    def next_texts(self, state: TextState) -> list[str]:
        """Returns texts that may follow: the rests of the phrases that are being copied, and those that may start."""
        texts: dict[str, None] = {}
        for hypothesis in state.hypotheses:
            if hypothesis.phrase >= 0 and hypothesis.position < len(self._phrases[hypothesis.phrase].text):
                item = self._phrases[hypothesis.phrase]
                start = item.offsets[hypothesis.position - 1] + 1 if hypothesis.position else 0
                texts[item.raw[start:]] = None
                continue
            for item in self._phrases:
                if item.source != BODY or not hypothesis.used >> item.line & 1:
                    texts["\n\n" + item.raw] = None
                    texts[item.raw] = None
        return list(texts)

    def missing_lines(self, state: TextState) -> list[Phrase]:
        """Returns the lines that have to follow, in order."""
        if not self.contract.complete:
            return []
        used = max((self.used_at_end(hypothesis) for hypothesis in state.hypotheses), key=int.bit_count)
        return [item for item in self._phrases[: self.record.num_lines] if not used >> item.line & 1]

    def used_at_end(self, hypothesis: Hypothesis) -> int:
        """Returns the lines that were copied, as bits, if the text ends here."""
        item = self._phrases[hypothesis.phrase] if hypothesis.phrase >= 0 else None
        is_copied = item is not None and item.source == BODY and hypothesis.position == len(item.text)
        return hypothesis.used | (1 << item.line if item is not None and is_copied else 0)


_TEXT_MODES = {
    Mode.DOCUMENT, Mode.CONTENT, Mode.STRONG, Mode.EMPH, Mode.HEADING, Mode.ITEM, Mode.TERM, Mode.MATH,
    Mode.MATH_CALL, Mode.MATH_GROUP,
}  # fmt: skip


def free_words(source: str, contract: TextContract) -> str:
    """Returns the text of a source in the contexts in which the contract does not restrict it."""
    read = read_pieces(START, source)
    free = {name for name, sources in contract.contexts if FREE in sources}
    if read is None or not free:
        return ""
    pieces = read[1]
    return "".join(p.text if p.kind in _VISIBLE and p.context in free else "\n" for p in pieces)
