"""Follows the text of a document while it is written, and says what may come next under a text contract.

The visible text is compared with the phrases of the record and of the style (`contract.record_text`), letter by letter.
At each point there may be several hypotheses of which phrase is being copied; text that refutes all of them is
rejected. In learning (`contract.learning`), the same guard reads the training outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from typst_lit.contract.phrase_matching import BREAK, Hypothesis, PhraseMatcher
from typst_lit.contract.record_text import BODY, CODE, FREE, STYLE, Phrase, RecordText, is_separator, normalized
from typst_lit.contract.text_contract import TextContract
from typst_lit.typesetting.syntax import (
    CODE_MODES,
    END_OF_EXPRESSION,
    FIELD,
    START,
    Mode,
    Phase,
    Piece,
    PieceKind,
    SyntaxState,
    context,
    read_pieces,
)

MAX_NEWLINES, MAX_WHITE_SPACE = 4, 40  # in a row, where text is exact
_WHITE_SPACE = " \t\n\r"
_APOSTROPHES = ("'", "\u2019")
MAX_GAP_RATIO, MIN_GAP = 1.5, 64  # of a stretch without visible letters: the length is up to 1.5 x limit + 64
MIN_COPIED = 12  # letters of a line, after which the rest of it is certain
_RULES = {Phase.SET: "#set", Phase.SHOW: "#show"}
MARK = "\1"  # among separators: where markup or code is
_VISIBLE = (PieceKind.TEXT, PieceKind.STRING, PieceKind.MATH, PieceKind.RAW)


def is_visible(piece: Piece) -> bool:
    """Returns whether readers see a letter or digit of a piece; strings in code may be settings."""
    return piece.kind in _VISIBLE and piece.kind is not PieceKind.STRING and any(map(str.isalnum, piece.text))


def used_name(piece: Piece) -> str:
    """Returns the name after a ``#`` that a piece of code is, or the ``$`` of an equation; else nothing."""
    if piece.kind is not PieceKind.CODE or not (piece.context == "#" or piece.text == "$"):
        return ""
    return piece.text


def rule(piece: Piece) -> str:
    """Returns the name after ``#set`` or ``#show`` that a piece is, with that keyword; else nothing."""
    return f"{piece.context[1:]} {piece.text}" if piece.context in _RULES.values() else ""


def field_name(piece: Piece) -> str:
    """Returns the name of a field or method that a piece is; else nothing."""
    return piece.text if piece.context == FIELD else ""


def used_values(pieces: Sequence[Piece]) -> set[str]:
    """Returns the names after a ``#`` that are not called: their values are shown."""
    ended = (piece for piece, following in pairwise(pieces) if following.text == END_OF_EXPRESSION)
    return {name for piece in ended if (name := used_name(piece))}


def mark_kind(mark: str) -> str:
    """Returns the character that stands for a kind of markup; ``1`` for a number.

    >>> mark_kind("=="), mark_kind("12.")
    ('=', '1')
    """
    return "1" if mark[0].isdigit() else mark[0]


class TextState(NamedTuple):
    """What is known of the text so far.

    Attributes:
        hypotheses: what it may be; empty is not possible.
        gap: the separators since the last letter.
        word: the letters of the word that is not complete.
        before: hypotheses and gap before this word.
        deviations: words that the contract does not allow.
        name: the last piece, if it is the name after a ``#``.
    """

    hypotheses: tuple[Hypothesis, ...] = (Hypothesis(),)
    gap: str = BREAK
    word: str = ""
    before: tuple[tuple[Hypothesis, ...], str] = ((Hypothesis(),), BREAK)
    deviations: int = 0
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
        # where no training output has text, there is none of the record's long text either
        self._other_contexts = known | {FREE} if is_free else known - {BODY}
        code_names = record.code_names if contract.code else frozenset()
        self._code_contexts = known | {CODE} if code_names else self._other_contexts
        self._names = code_names.union(contract.names) if contract.names else frozenset()
        self._values = None if contract.values is None else code_names.union(contract.values)
        self._fields = None if contract.fields is None else code_names.union(contract.fields)
        self._matcher = PhraseMatcher(contract, record)
        characters = {character for item in self._phrases for character in item.raw if not character.isascii()}
        self._other_characters = [character.encode("utf-8", "ignore") for character in characters]
        # what may stand before the first word of a phrase
        self._leading = {
            character for item in self._phrases if item.source != STYLE for character in item.separators(0)
        }

    # Reading

    def read(self, state: TextState, pieces: Iterable[Piece], may_deviate: bool = False) -> TextState | None:
        """Returns the state after pieces of the source; None when they must not follow.

        Args:
            state: the state before them.
            pieces: what follows.
            may_deviate: let words pass that the contract does not allow, as long as there are not more of them than in
                training outputs.
        """
        for piece in pieces:
            following = self._read_piece(state, piece, may_deviate)
            if following is None:
                return None
            state = following
        return state

    def _read_piece(self, state: TextState, piece: Piece, may_deviate: bool) -> TextState | None:
        if piece.kind is PieceKind.CODE:
            return self._read_code(state, piece)
        if state.name:
            state = state._replace(name="")
        if piece.kind in _VISIBLE:
            return self._read_text(state, piece, may_deviate)
        if piece.kind is PieceKind.BREAK:
            return self._read_break(state, may_deviate, is_string=bool(piece.text))
        return state._replace(gap=state.gap and state.gap + MARK) if self._may_mark(state, piece.text) else None

    def _read_code(self, state: TextState, piece: Piece) -> TextState | None:
        """Returns the state after code; its first name is one that is in use, and called unless it is a value."""
        name, values = used_name(piece), self._values
        if self._names and name and name not in self._names:
            return None
        if self.contract.rules is not None and (found := rule(piece)) and found not in self.contract.rules:
            return None
        if self._fields is not None and (field := field_name(piece)) and field not in self._fields:
            return None
        if state.name and piece.text == END_OF_EXPRESSION and values is not None and state.name not in values:
            return None
        return state._replace(name=name) if name or state.name else state

    def may_begin(self, state: TextState, syntax: SyntaxState, start: bytes) -> bool:
        """Returns whether a character that is not ASCII may follow, of which the first bytes are known."""
        sources = self._sources(context(syntax.stack))
        return FREE in sources or any(character.startswith(start) for character in self._other_characters)

    def may_continue(self, state: TextState, syntax: SyntaxState, may_deviate: bool = False) -> bool:
        """Returns whether the last characters, which depend on what follows, can become text that may follow.

        Without this, a text would be found out only after more of it, when nothing can follow any longer.
        """
        pending, top = syntax.pending, syntax.stack[-1]
        if not pending:
            return True
        if (names := self._known_names(syntax)) is not None:
            return bool(self.next_names(syntax)) or not names[0]
        if top.mode not in _TEXT_MODES or pending[0] == "\\":
            return True
        if pending[0].isdigit() and "1" in self.contract.marks:
            return True
        if not pending[0].isalnum() and self._may_mark(state, pending):
            return True
        piece = Piece(PieceKind.TEXT, pending, context(syntax.stack))
        following = self._read_text(state, piece, may_deviate)
        if following is None or pending[-1] != ".":
            return following is not None
        # a number with a period starts an item, unless a letter or digit follows directly
        return any(h.phrase < 0 or self._matcher.separators(h) == "." for h in following.hypotheses)

    def next_names(self, syntax: SyntaxState) -> list[str]:
        """Returns the rests of the names that may follow after the first characters of one."""
        start, names = self._known_names(syntax) or ("", ())
        return sorted(name[len(start) :] for name in names if name.startswith(start))

    def _known_names(self, syntax: SyntaxState) -> tuple[str, Collection[str]] | None:
        """Returns the first characters of a name, and the names that it may be; None where it may be any or none."""
        top, start = syntax.stack[-1], syntax.pending
        if top.value is Phase.START:
            return (start, self._names) if self._names else None
        if keyword := _RULES.get(top.value, "")[1:]:
            rules = self.contract.rules
            return None if rules is None else (f"{keyword} {start}", rules)
        is_field = start[:1] == "." or syntax.name == FIELD
        if top.mode not in CODE_MODES or not is_field or self._fields is None:
            return None
        return start.removeprefix("."), self._fields

    def _read_break(self, state: TextState, may_deviate: bool, is_string: bool) -> TextState | None:
        """Returns the state after the end of some text; that of a string has complete phrases only."""
        if is_string:
            hypotheses = tuple(h for h in state.hypotheses if not self._matcher.is_interrupted(h))
            return state._replace(hypotheses=hypotheses, gap=state.gap + BREAK) if hypotheses else None
        ended = self._end_word(state, may_deviate)
        return ended._replace(gap=ended.gap + BREAK) if ended else None

    def _end_word(self, state: TextState, may_deviate: bool) -> TextState | None:
        """Returns the state after the end of a word, if one may end here."""
        if state.gap:
            return state
        hypotheses = tuple(filter(self._matcher.is_at_word_end, state.hypotheses))
        if hypotheses:
            return state._replace(hypotheses=hypotheses)
        deviated = self._deviate(state, state.word) if may_deviate else None
        return deviated and deviated._replace(
            hypotheses=tuple(filter(self._matcher.is_at_word_end, deviated.hypotheses))
        )

    def _read_text(self, state: TextState, piece: Piece, may_deviate: bool) -> TextState | None:
        sources = self._sources(piece.context)
        is_exact = self.contract.exact and piece.kind is not PieceKind.STRING and FREE not in sources
        may_deviate = may_deviate and piece.kind is not PieceKind.STRING
        for character in piece.text:
            letters = normalized(character)
            if not letters:
                if is_separator(character):
                    ended = self._end_word(state, may_deviate)
                    if not ended or (is_exact and not self._may_separate(ended.hypotheses, ended.gap, character)):
                        return None
                    state = ended._replace(gap=ended.gap + character)
                continue
            for letter in letters:
                following = self._read_letter(state, letter, sources)
                if following is None and may_deviate:
                    if state.gap:
                        state = state._replace(before=(state.hypotheses, state.gap), word="", gap="")
                    following = self._deviate(state, state.word + letter)
                if following is None:
                    return None
                state = following
        return state

    def _sources(self, name: str) -> frozenset[str]:
        """Returns where the words of a context come from; in code of the record, also from its content blocks."""
        is_code = not self.record.code_names.isdisjoint(name.split(" > "))
        return self._contexts.get(name, self._code_contexts if is_code else self._other_contexts)

    def _read_letter(self, state: TextState, letter: str, sources: frozenset[str]) -> TextState | None:
        hypotheses = self._matcher.advance(state.hypotheses, letter, state.gap, sources)
        if not hypotheses:
            return None
        if state.gap:
            return TextState(hypotheses, "", letter, (state.hypotheses, state.gap), state.deviations)
        return TextState(hypotheses, "", state.word + letter, state.before, state.deviations)

    def _deviate(self, state: TextState, word: str) -> TextState | None:
        """Returns the state after a word that the contract does not allow; None when there were too many of them.

        It may be any word, instead of one of the record or in addition, or a word of another line.
        """
        if state.deviations >= self.contract.max_deviations:
            return None
        following = self._matcher.deviate(*state.before, word)
        return TextState(following, "", word, state.before, state.deviations + 1)

    def _may_separate(self, hypotheses: Sequence[Hypothesis], gap: str, character: str) -> bool:
        """Returns whether a character may be between words here: white space, or one that the record has there."""
        if character in _WHITE_SPACE:
            run = gap[len(gap.rstrip(_WHITE_SPACE)) :]
            is_in_word = all(h.phrase >= 0 and self._matcher.separators(h) in _APOSTROPHES for h in hypotheses)
            return not is_in_word and run.count("\n") < MAX_NEWLINES and len(run) < MAX_WHITE_SPACE
        return any(
            character in self._leading
            or (h.phrase >= 0 and gap.count(character) < self._matcher.separators(h).count(character))
            for h in hypotheses
        )

    def _may_mark(self, state: TextState, mark: str) -> bool:
        """Returns whether markup may start here: within a line only where training pairs insert some, and not where
        the record has the same character as text."""
        if self.contract.marks and mark_kind(mark) not in self.contract.marks:
            return False
        if not all(h.phrase >= 0 and h.position for h in state.hypotheses) or BREAK in state.gap or "\n" in state.gap:
            return True
        gaps = [self._matcher.separators(hypothesis) for hypothesis in state.hypotheses]
        breaks = self.contract.break_characters
        is_in_line = breaks is not None and all(map(self._matcher.is_interrupted, state.hypotheses))
        is_break = any(character in gap for gap in gaps for character in breaks or "")
        if is_in_line and not (is_break and mark_kind(mark) in self.contract.inner_marks):
            return False
        is_special = mark in "#$*_`<@" and mark not in self.contract.unescaped
        return not is_special or not all(mark in gap[len(state.gap) :] for gap in gaps)

    def is_between_phrases(self, state: TextState) -> bool:
        """Returns whether no phrase is being copied, so that what follows depends on the used lines only."""
        if BREAK not in state.gap and "\n" not in state.gap:
            return False
        return not any(map(self._matcher.is_interrupted, state.hypotheses))

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

    def may_have_gaps(self, gaps: Sequence[int]) -> bool:
        """Returns whether stretches of a source without visible letters are at most about as long as in training."""
        return all(gap <= MAX_GAP_RATIO * limit + MIN_GAP for gap, limit in zip(gaps, self.contract.gaps, strict=False))

    # What is certain, and what is missing

    def forced_text(self, state: TextState) -> str:
        """Returns text of the record that has to follow, since only one line starts as what was written; or nothing."""
        breaks = self.contract.break_characters or ""
        if not self.contract.copied or len(state.hypotheses) != 1:
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
        """Returns the lines of which some have to follow, in order; none where enough of them were copied."""
        used = self._matcher.used_lines(state.hypotheses)
        missing = self.record.required & ~used
        if missing.bit_count() <= self._matcher.max_missing:
            return []
        lines = [item for item in self._phrases[: self.record.num_lines] if missing >> item.line & 1]
        return [item for item in lines if self._matcher.is_next(item.line, used)]

    def rest_of_line(self, state: TextState) -> str:
        """Returns what is left of the line that is being copied, or interrupted; nothing where that is not certain."""
        copied = {h.held if h.phrase < 0 and h.held else (h.phrase, h.position) for h in state.hypotheses}
        if len(copied) != 1:
            return ""
        ((number, position),) = copied
        item = self._phrases[number]
        if number < 0 or item.source != BODY or not position or position >= len(item.text):
            return ""
        if not state.gap:
            return item.raw[item.offsets[position - 1] + 1 :]
        return item.raw[item.offsets[position + 1] :] if item.text[position] == " " else ""

    def next_line(self, state: TextState) -> Phrase | None:
        """Returns the first line that was not copied, after those that were where lines are in order.

        None while another phrase is being copied, and where there is none.
        """
        if not self.is_between_phrases(state):
            return None
        used = self._matcher.used_lines(state.hypotheses)
        start = used.bit_length() if self.contract.ordered else 0
        missing = self.record.required & ~used
        return next((item for item in self._phrases[start : self.record.num_lines] if missing >> item.line & 1), None)

    def share_of_lines(self, state: TextState) -> float:
        """Returns the share of the required lines that were copied, 0 to 1."""
        required = self.record.required
        return (
            (self._matcher.used_lines(state.hypotheses) & required).bit_count() / required.bit_count()
            if required
            else 1.0
        )


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
