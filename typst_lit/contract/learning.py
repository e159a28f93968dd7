"""Learns the text contract of training pairs: for each pair the strictest one that its output keeps to.

A property is part of the contract if it holds in at least 95 % of the pairs; the others are its exceptions.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

from typst_lit.contract.record_text import BODY, FILE, FREE, STYLE, RecordText, phrase
from typst_lit.contract.text_contract import TextContract
from typst_lit.contract.text_guard import TextGuard, TextState, mark_kind, names_in_code
from typst_lit.data.minhash import minhash_signature, similarity
from typst_lit.metrics.functional import content_fidelity, words
from typst_lit.typesetting.results import CompileResult
from typst_lit.typesetting.syntax import START, Piece, PieceKind, read_pieces

MIN_SHARE = 0.95  # of the pairs in which a property holds
MAX_PAIRS = 300  # that are looked at; more would not change the result
NEAR_DUPLICATE = 0.5  # similarity of two texts that count as one
MIN_CONSTANT_SHARE = 0.8  # of the outputs that have a string in a context, and a word in it that belongs to the style
LOOK_AHEAD = 16  # pieces that are read to choose what a pair needs
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
    used_names = [{name for p in pieces if p.kind is PieceKind.CODE for name in names_in_code(p)} for pieces in sources]
    used_marks = [{mark_kind(p.text) for p in pieces if p.kind is PieceKind.MARK} for pieces in sources]
    fidelities = [content_fidelity(str(pair.fields[pair.body_field]), pair.result.body) for pair in pairs]
    found = [
        _Strictest(pair, pieces, style_words).find() for pair, pieces in zip(pairs, sources, strict=True) if pieces
    ]
    contract = _common(found, len(pairs))
    return replace(
        contract,
        num_pairs=len(pairs),
        typst_version=version("typst"),
        min_fidelity=_percentile([value for value in fidelities if value is not None], 0.05),
        style_words=tuple(sorted(style_words)),
        names=tuple(sorted(_common_items(used_names, groups))),
        marks="".join(sorted(_common_items(used_marks, groups))),
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


def _foreign_words(pair: TrainingPair, pieces: Iterable[Piece]) -> set[str]:
    """Returns the words that an output has in its source, or shows, and that are not in its record."""
    text = "\n".join(map(str, pair.fields.values()))
    known = {*phrase("", text).text.split(), *words(text)}
    written = {*phrase("", "".join(p.text if p.kind in _VISIBLE else "\n" for p in pieces)).text.split()}
    return {*written, *words(pair.result.text)} - known


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


@dataclass
class _Found:
    """The strictest contract of one pair, and in which contexts it has text.

    Attributes:
        contract: the contract.
        breaks: characters next to which markup was inserted in a line; a space where there is no other one.
        inner_marks: the marks of that markup.
    """

    contract: TextContract
    breaks: set[str]
    inner_marks: set[str]


class _Strictest:
    """The search for the strictest contract that one pair keeps to."""

    def __init__(self, pair: TrainingPair, pieces: list[Piece], style_words: Iterable[str]) -> None:
        self.pieces = pieces
        self.record = RecordText(pair.fields, pair.body_field, style_words)
        self.sources = [*(name for name in pair.fields if name != pair.body_field), FILE, STYLE, BODY]
        contexts = dict.fromkeys(piece.context for piece in pieces if piece.kind in _VISIBLE)
        self.contract = TextContract(
            1,
            "",
            1.0,
            contexts=tuple((name, ()) for name in contexts),
            ordered=True,
            complete=True,
            copied=True,
            exact=True,
        )
        self.breaks: set[str] = set()
        self.inner_marks: set[str] = set()

    def find(self) -> _Found:
        """Returns the contract: at each piece that the current one rejects, it is relaxed as little as possible."""
        guard = TextGuard(self.contract, self.record)
        state, index, start = TextState(), 0, (0, TextState())
        while index < len(self.pieces):
            piece = self.pieces[index]
            following = guard.read(state, [piece])
            if following is None:
                self.contract = self._relaxed(piece, *start, index)
                guard = TextGuard(self.contract, self.record)
                index, state = start
                continue
            if piece.kind not in _VISIBLE:
                separators = guard.interrupted_separators(state)
                self.breaks |= separators
                if separators and piece.kind is PieceKind.MARK:
                    self.inner_marks.add(mark_kind(piece.text))
            state, index = following, index + 1
            if guard.is_between_phrases(state):
                start = index, state
        best = max(state.hypotheses, key=lambda hypothesis: guard.used_at_end(hypothesis).bit_count())
        complete = guard.used_at_end(best).bit_count() == self.record.num_lines
        self.contract = replace(
            self.contract,
            complete=self.contract.complete and complete,
            repeated_lines=best.repeated.bit_length(),
        )
        return _Found(self.contract, self.breaks, self.inner_marks)

    def _relaxed(self, piece: Piece, start: int, state: TextState, failed: int) -> TextContract:
        """Returns the contract after the change that lets most of what follows pass; the strictest one of those."""
        best, best_progress = None, failed
        for contract in self._candidates(piece):
            progress = self._progress(contract, start, state, failed + LOOK_AHEAD)
            if progress > best_progress:
                best, best_progress = contract, progress
        if best is not None:
            return best
        free = self._with_source(piece.context, FREE)
        return free if free != self.contract else replace(free, copied=False, ordered=False, complete=False)

    def _progress(self, contract: TextContract, start: int, state: TextState, end: int) -> int:
        guard = TextGuard(contract, self.record)
        for index in range(start, min(end, len(self.pieces))):
            following = guard.read(state, [self.pieces[index]])
            if following is None:
                return index
            state = following
        return end

    def _candidates(self, piece: Piece) -> Iterator[TextContract]:
        if piece.kind is PieceKind.MARK:
            yield replace(self.contract, unescaped=self.contract.unescaped + piece.text)
            return
        changes: list[Callable[[TextContract], TextContract]] = [
            lambda contract: contract,
            lambda contract: replace(contract, repeated_lines=self.record.num_lines),
            lambda contract: replace(contract, complete=False),
            lambda contract: replace(contract, ordered=False),
            lambda contract: replace(contract, copied=False),
            lambda contract: replace(contract, exact=False),
            lambda contract: replace(contract, ordered=False, copied=False, complete=False),
        ]
        for source in (None, *self.sources):
            contract = self._with_source(piece.context, source) if source else self.contract
            for change in changes if source in (None, BODY) else changes[:1]:
                if (changed := change(contract)) != self.contract:
                    yield changed

    def _with_source(self, context: str, source: str) -> TextContract:
        contexts = dict(self.contract.contexts)
        contexts[context] = tuple(dict.fromkeys([*contexts[context], source]))
        return replace(self.contract, contexts=tuple(contexts.items()))


def _common(found: Sequence[_Found], num_pairs: int) -> TextContract:
    """Returns the contract of what held in nearly all pairs."""
    contracts = [item.contract for item in found]
    needed: defaultdict[str, Counter[str]] = defaultdict(Counter)
    occurs: Counter[str] = Counter()
    for contract in contracts:
        for context, sources in contract.contexts:
            occurs[context] += 1
            needed[context].update(sources)
    contexts = {
        context: tuple(sorted(s for s, count in needed[context].items() if count > _max_exceptions(occurs[context])))
        for context in sorted(occurs)
    }
    marks = Counter(mark for contract in contracts for mark in set(contract.unescaped))
    breaks = Counter(character for item in found for character in item.breaks)
    limit = _max_exceptions(num_pairs)
    common_breaks = {character for character, count in breaks.items() if count > limit}
    repeated = sorted(contract.repeated_lines for contract in contracts)
    properties = {
        name: sum(not getattr(c, name) for c in contracts) for name in ("ordered", "complete", "copied", "exact")
    }
    return TextContract(
        num_pairs,
        "",
        0.0,
        contexts=tuple(contexts.items()),
        ordered=properties["ordered"] <= limit,
        complete=properties["complete"] <= limit,
        copied=properties["copied"] <= limit,
        exact=properties["exact"] <= limit,
        repeated_lines=repeated[int(MIN_SHARE * (len(repeated) - 1) + 0.999)],
        unescaped="".join(sorted(mark for mark, count in marks.items() if count > limit)),
        break_characters=None
        if any(c.isalnum() or c == " " for c in common_breaks)
        else "".join(sorted(common_breaks)),
        inner_marks="".join(sorted(set().union(*(item.inner_marks for item in found)))),
        exceptions=tuple((name, count) for name, count in properties.items() if count),
    )


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
