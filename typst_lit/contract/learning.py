"""Learns the text contract of training pairs: the strictest one to which at least 95 % of them keep.

An output may deviate in single words and lines, as a writer corrects a record here and there. So properties are counted
by word and by line, over all pairs; how much a document may deviate is what 95 % of the pairs need.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

from typst_lit.contract.record_text import BODY, CODE, FILE, FREE, STYLE, RecordText, names_in_code, phrase
from typst_lit.contract.text_contract import NUM_GAPS, TextContract, longest
from typst_lit.contract.text_guard import (
    TextGuard,
    TextState,
    field_name,
    is_visible,
    mark_kind,
    rule,
    used_name,
    used_values,
)
from typst_lit.data.minhash import minhash_signature, similarity
from typst_lit.metrics.functional import content_fidelity
from typst_lit.metrics.functional import words as split_words
from typst_lit.typesetting.results import CompileResult
from typst_lit.typesetting.syntax import START, Piece, PieceKind, read_pieces

MIN_SHARE = 0.95  # of the pairs, lines or words for which a property holds
MAX_PAIRS = 300  # that are looked at; more would not change the result
NEAR_DUPLICATE = 0.5  # similarity of two texts that count as one
MIN_CONSTANT_SHARE = 0.8  # of the outputs that have a string in a context, and a word in it that belongs to the style
LOOK_AHEAD = 16  # pieces that are read to choose what a pair needs
MAX_SEARCHES = 20  # for where the words of a context come from; then they come from elsewhere
UNLIMITED = 1 << 30  # deviations
_WORDS = re.compile(r"[^\W_]+|[\W_]+")
_VISIBLE = (PieceKind.TEXT, PieceKind.STRING, PieceKind.MATH, PieceKind.RAW)


class TrainingPair(NamedTuple):
    """A training pair with its compiled output.

    Attributes:
        fields: the record.
        body_field: name of the field with the long text.
        output: the Typst source.
        result: of compiling it.
        group: what the style is looked for across; by default the title of the project.
    """

    fields: Mapping[str, Any]
    body_field: str
    output: str
    result: CompileResult
    group: str = ""


def learn_contract(pairs: Sequence[TrainingPair]) -> TextContract | None:
    """Returns the contract of training pairs; None when none of their outputs compiles.

    Args:
        pairs: the first `MAX_PAIRS` of them are looked at.
    """
    pairs = [pair for pair in pairs[:MAX_PAIRS] if pair.result.ok]
    if not pairs:
        return None
    pairs = separate_groups([pair._replace(group=pair.group or _title(pair)) for pair in pairs])
    sources = [_pieces(pair.output) for pair in pairs]
    groups = [pair.group for pair in pairs]
    shown = [_foreign_words(pair, pieces) for pair, pieces in zip(pairs, sources, strict=True)]
    style_words = shared(shown, groups) | _constant_words(sources, groups)
    used_marks = [{mark_kind(p.text) for p in pieces if p.kind is PieceKind.MARK} for pieces in sources]
    fidelities = [content_fidelity(str(pair.fields[pair.body_field]), pair.result.body) for pair in pairs]
    texts = [
        _Text(pieces, RecordText(pair.fields, pair.body_field, style_words), pair.fields, pair.body_field)
        for pair, pieces in zip(pairs, sources, strict=True)
        if pieces
    ]
    contract = _with_limits(_with_order(_common([_Search(text).find() for text in texts]), texts), texts)
    return replace(
        contract,
        num_pairs=len(pairs),
        typst_version=version("typst"),
        min_fidelity=_percentile([value for value in fidelities if value is not None], 1 - MIN_SHARE),
        style_words=tuple(sorted(style_words)),
        **_names(sources, [names_in_code(str(pair.fields[pair.body_field])) for pair in pairs], groups),
        marks="".join(sorted(_common_items(used_marks, groups))),
        gaps=tuple(map(max, zip(*(_gaps(pair.output) for pair in pairs), strict=True))),
        num_exceptions=contract.num_exceptions + len(pairs) - len(texts),
    )


def _title(pair: TrainingPair) -> str:
    return str(pair.fields.get("project_title", ""))


def separate_groups(pairs: Sequence[TrainingPair]) -> list[TrainingPair]:
    """Returns the pairs with several groups: where all are of one, texts that are no near-duplicates are groups."""
    if len({pair.group for pair in pairs}) > 1:
        return list(pairs)
    signatures: list[Any] = []
    separated = []
    for pair in pairs:
        signature = minhash_signature(str(pair.fields[pair.body_field]))
        same = (i for i, other in enumerate(signatures) if similarity(signature, other) >= NEAR_DUPLICATE)
        index = next(same, len(signatures)) if len(signature) else 0
        if index == len(signatures):
            signatures.append(signature)
        separated.append(pair._replace(group=str(index)))
    return separated


def shared(items: Sequence[set[str]], groups: Sequence[str]) -> set[str]:
    """Returns what occurs in at least two groups.

    >>> shared([{"page", "rain"}, {"page", "snow"}, {"snow"}], ["a", "b", "b"])
    {'page'}
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for values, group in zip(items, groups, strict=True):
        for value in values:
            found[value].add(group)
    return {value for value, names in found.items() if len(names) > 1}


def _common_items(items: Sequence[set[str]], groups: Sequence[str]) -> set[str]:
    """Returns what occurs in at least two groups, if nearly no output has anything else; else nothing."""
    common = shared(items, groups)
    num_exceptions = sum(not common >= values for values in items)
    return common if num_exceptions <= _max_exceptions(len(items)) else set()


def _names(sources: Sequence[list[Piece]], record_names: Sequence[frozenset[str]], groups: Sequence[str]) -> Any:
    """Returns which names outputs use in code, as fields of a contract.

    Args:
        sources: the pieces of each output.
        record_names: the names in Typst code of each record.
        groups: the project of each pair.
    """
    is_code = [_has_code(pieces, own) for pieces, own in zip(sources, record_names, strict=True) if own]
    code = bool(is_code) and is_code.count(False) <= _max_exceptions(len(is_code))

    def found(name: Callable[[Piece], str]) -> list[set[str]]:
        own = record_names if code else itertools.repeat(frozenset[str]())
        return [set(filter(None, map(name, pieces))) - names for pieces, names in zip(sources, own, strict=False)]

    shown_values = [used_values(pieces) for pieces in sources]
    return {
        "code": code,
        "names": tuple(sorted(_common_items(found(used_name), groups))),
        "rules": _limited_to(found(rule), groups),
        "values": _limited_to(shown_values, groups),
        "fields": _limited_to(found(field_name), groups),
    }


def _has_code(pieces: Sequence[Piece], names: frozenset[str]) -> bool:
    """Returns whether an output uses names of its record's Typst code, and does not show that code as text."""
    is_used = any(piece.kind is PieceKind.CODE and piece.text in names for piece in pieces)
    text = "".join(piece.text for piece in pieces if piece.kind in (PieceKind.TEXT, PieceKind.RAW))
    return is_used and not any(f"#{name}(" in text for name in names)


def _limited_to(items: Sequence[set[str]], groups: Sequence[str]) -> tuple[str, ...] | None:
    """Returns what occurs in at least two groups; None where outputs have other things."""
    common = _common_items(items, groups)
    return tuple(sorted(common)) if common or not any(items) else None


def _pieces(source: str) -> list[Piece]:
    """Returns the pieces of an output, visible text word by word; none of an output that can't be parsed."""
    read = read_pieces(START, source + "\n\n ")
    if read is None:
        return []
    return [
        piece._replace(text=text)
        for piece in read[1]
        for text in (_WORDS.findall(piece.text) if piece.kind in _VISIBLE else [piece.text])
    ]


def _gaps(source: str) -> tuple[int, ...]:
    """Returns the lengths of the longest stretches without visible letters, line by line."""
    state, gaps, gap = START, [0] * NUM_GAPS, 0
    for line in source.splitlines(keepends=True):
        gap += len(line)
        read = read_pieces(state, line)
        if read is None:
            break
        state = read[0]
        if any(map(is_visible, read[1])):
            gaps.append(gap)
            gap = 0
    return longest(gaps)


def _foreign_words(pair: TrainingPair, pieces: Iterable[Piece]) -> set[str]:
    """Returns the words that an output has in its source, or shows, and that are not in its record."""
    text = "\n".join(map(str, pair.fields.values()))
    known = {*phrase("", text).text.split(), *split_words(text)}
    written = {*phrase("", "".join(p.text if p.kind in _VISIBLE else "\n" for p in pieces)).text.split()}
    return {*written, *split_words(pair.result.text)} - known


def _constant_words(sources: Sequence[Sequence[Piece]], groups: Sequence[str]) -> set[str]:
    """Returns the words of strings that most outputs with their context have, whether or not in a record."""
    strings: defaultdict[str, list[set[str]]] = defaultdict(list)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for pieces, group in zip(sources, groups, strict=True):
        found: defaultdict[str, set[str]] = defaultdict(set)
        for piece in pieces:
            if piece.kind is PieceKind.STRING:
                found[piece.context].update(phrase("", piece.text).text.split())
        for context, values in found.items():
            strings[context].append(values)
            names[context].append(group)
    return {
        word
        for context, values in strings.items()
        for word in shared(values, names[context])
        if sum(word in value for value in values) >= MIN_CONSTANT_SHARE * len(values)
    }


class _Text(NamedTuple):
    """The output of a pair, to be read with its record."""

    pieces: list[Piece]
    record: RecordText
    fields: Mapping[str, Any]
    body_field: str

    def read(self, contract: TextContract) -> TextState:
        """Returns the state at the end under a contract, however much the output deviates."""
        guard = TextGuard(contract, self.record)
        state = TextState()
        for piece in self.pieces:
            state = _read(guard, state, piece)
        return state

    def deviations(self, contract: TextContract) -> Counter[str]:
        """Returns the number of words by context that deviate from a contract."""
        guard = TextGuard(contract, self.record)
        state = TextState()
        counts: Counter[str] = Counter()
        for piece in self.pieces:
            following = _read(guard, state, piece)
            counts[piece.context] += following.deviations - state.deviations
            state = following
        return counts


def _read(guard: TextGuard, state: TextState, piece: Piece) -> TextState:
    """Returns the state after a piece of a training output; what is not allowed at all counts as a deviation."""
    following = guard.read(state, [piece], may_deviate=True)
    return state._replace(deviations=state.deviations + 1) if following is None else following


@dataclass
class _Found:
    """What one pair needs.

    Attributes:
        contract: the strictest contract that it keeps to, whatever the order of its lines.
        words: the number of words by context.
        deviations: those that deviate.
        repeated: the lines that are shown twice, as bits.
        breaks: characters next to which markup was inserted in a line; a space where there is no other one.
        inner_marks: the marks of that markup.
    """

    contract: TextContract
    words: Counter[str]
    deviations: Counter[str]
    repeated: int
    breaks: set[str]
    inner_marks: set[str]


class _Search:
    """The search for what one pair needs, above all for where the words of each context come from."""

    def __init__(self, text: _Text) -> None:
        self.text = text
        self.pieces = text.pieces
        self.sources = [*(name for name in text.fields if name != text.body_field), FILE, CODE, STYLE, BODY]
        contexts = dict.fromkeys(piece.context for piece in self.pieces if piece.kind in _VISIBLE)
        self.contract = TextContract(
            1,
            "",
            1.0,
            contexts=tuple((name, ()) for name in contexts),
            copied=True,
            exact=True,
            max_deviations=UNLIMITED,
        )
        self.num_searches: Counter[str] = Counter()
        self.breaks: set[str] = set()
        self.inner_marks: set[str] = set()

    def find(self) -> _Found:
        """Returns what it needs: at each piece that the contract rejects, it is relaxed as little as possible."""
        guard = TextGuard(self.contract, self.text.record)
        state, index, start = TextState(), 0, (0, TextState())
        while index < len(self.pieces):
            piece = self.pieces[index]
            following = guard.read(state, [piece])
            if following is None:
                relaxed = self._relaxed(piece, *start, index)
                if relaxed != self.contract:
                    self.contract = relaxed
                    guard = TextGuard(self.contract, self.text.record)
                    index, state = start
                    continue
                following = _read(guard, state, piece)
            if piece.kind not in _VISIBLE:
                separators = guard.interrupted_separators(state)
                self.breaks |= separators
                if separators and piece.kind is PieceKind.MARK:
                    self.inner_marks.add(mark_kind(piece.text))
            state, index = following, index + 1
            if guard.is_between_phrases(state):
                start = index, state
        repeated = min(hypothesis.repeated for hypothesis in state.hypotheses)
        words = Counter(p.context for p in self.pieces if p.kind in _VISIBLE and p.text[0].isalnum())
        deviations = self.text.deviations(self.contract)
        for context, sources in self.contract.contexts:
            if FREE in sources:
                deviations[context] = words[context]
        return _Found(self.contract, words, deviations, repeated, self.breaks, self.inner_marks)

    def _relaxed(self, piece: Piece, start: int, state: TextState, failed: int) -> TextContract:
        """Returns the contract with the change after which the fewest of the next words deviate."""
        self.num_searches[piece.context] += 1
        if self.num_searches[piece.context] > MAX_SEARCHES and piece.kind in _VISIBLE:
            return self._with_source(piece.context, FREE)
        end = min(failed + LOOK_AHEAD, len(self.pieces))
        candidates = [self.contract, *self._candidates(piece)]
        return min(candidates, key=lambda contract: self._num_deviations(contract, start, state, end))

    def _num_deviations(self, contract: TextContract, start: int, state: TextState, end: int) -> int:
        guard = TextGuard(contract, self.text.record)
        for piece in self.pieces[start:end]:
            state = _read(guard, state, piece)
        return state.deviations

    def _candidates(self, piece: Piece) -> Iterator[TextContract]:
        if piece.kind is PieceKind.MARK:
            yield replace(self.contract, unescaped=self.contract.unescaped + piece.text)
            return
        changes: list[dict[str, Any]] = []
        if self.contract.repeated_lines < self.text.record.num_lines:
            changes.append({"repeated_lines": self.text.record.num_lines})
        if self.contract.exact:
            changes.append({"exact": False})
        yield from (replace(self.contract, **change) for change in changes)
        if piece.kind in _VISIBLE:
            for source in self.sources:
                if source not in dict(self.contract.contexts)[piece.context]:
                    contract = self._with_source(piece.context, source)
                    yield contract
                    if source == BODY:
                        yield from (replace(contract, **change) for change in changes)

    def _with_source(self, context: str, source: str) -> TextContract:
        contexts = dict(self.contract.contexts)
        contexts[context] = tuple(dict.fromkeys([*contexts[context], source]))
        return replace(self.contract, contexts=tuple(contexts.items()))


def _common(found: Sequence[_Found]) -> TextContract:
    """Returns the contract of what nearly all pairs need."""
    contracts = [item.contract for item in found]
    needed: defaultdict[str, Counter[str]] = defaultdict(Counter)
    occurs: Counter[str] = Counter()
    for contract in contracts:
        for context, sources in contract.contexts:
            occurs[context] += 1
            needed[context].update(set(sources) - {FREE})
    words: Counter[str] = sum((item.words for item in found), Counter())
    deviations: Counter[str] = sum((item.deviations for item in found), Counter())
    contexts = {}
    for context in sorted(occurs):
        names = [name for name, count in needed[context].items() if count > _max_exceptions(occurs[context])]
        names += [FREE] if deviations[context] > _max_exceptions(words[context]) else []
        contexts[context] = tuple(sorted(names))
    marks = Counter(mark for contract in contracts for mark in set(contract.unescaped))
    breaks = Counter(character for item in found for character in item.breaks)
    limit = _max_exceptions(len(found))
    common_breaks = {character for character, count in breaks.items() if count > limit}
    repeated = Counter(
        line for item in found for line in range(item.repeated.bit_length()) if item.repeated >> line & 1
    )
    usually_repeated = [line for line, count in repeated.items() if count > len(found) / 2]
    return TextContract(
        len(found),
        "",
        0.0,
        contexts=tuple(contexts.items()),
        exact=sum(not contract.exact for contract in contracts) <= limit,
        repeated_lines=max(usually_repeated, default=-1) + 1,
        unescaped="".join(sorted(mark for mark, count in marks.items() if count > limit)),
        break_characters=None
        if any(c.isalnum() or c == " " for c in common_breaks)
        else "".join(sorted(common_breaks)),
        inner_marks="".join(sorted(set().union(*(item.inner_marks for item in found)))),
        max_deviations=UNLIMITED,
    )


def _with_order(contract: TextContract, texts: Sequence[_Text]) -> TextContract:
    """Returns a contract with what holds for nearly all words: that lines are in order, and copied to their end."""
    num_words = sum(len(item.text.split()) for text in texts for item in text.record.phrases if item.source == BODY)

    def num_deviations(contract: TextContract) -> int:
        return sum(text.read(contract).deviations for text in texts)

    contract = replace(contract, ordered=True, copied=True)
    for property_ in ("ordered", "copied"):
        looser = replace(contract, **{property_: False})  # type: ignore[arg-type]
        if num_deviations(contract) - num_deviations(looser) > _max_exceptions(num_words):
            contract = looser
    return contract


def _with_limits(contract: TextContract, texts: Sequence[_Text]) -> TextContract:
    """Returns a contract with how much of a document may deviate, and how much of a record has to be shown."""
    # a line elsewhere is an exception, but does not let other words deviate
    unordered = replace(contract, ordered=False)
    guards = [TextGuard(unordered, text.record) for text in texts]
    states = [text.read(unordered) for text in texts]
    deviations = [state.deviations for state in states]
    shown = [guard.share_of_lines(state) for guard, state in zip(guards, states, strict=True)]
    max_deviations = -_percentile([-count for count in deviations], 1 - MIN_SHARE)
    min_shown = _percentile(shown, 1 - MIN_SHARE)
    num_exceptions = sum(
        count > max_deviations or share < min_shown for count, share in zip(deviations, shown, strict=True)
    )
    return replace(contract, max_deviations=int(max_deviations), min_shown=min_shown, num_exceptions=num_exceptions)


def _max_exceptions(count: int) -> int:
    """Returns in how many of some pairs a property may not hold."""
    return int((1 - MIN_SHARE) * count)


def _percentile(values: Sequence[float], share: float) -> float:
    """Returns the value below which a share of the values is; 0 without values.

    >>> _percentile([0.9, 1.0, 0.8, 0.95], 0.05)
    0.8
    """
    ordered = sorted(values)
    return ordered[int(share * len(ordered))] if ordered else 0.0
