"""Guesses of how a document goes on, copied from where the same words stood before: record, itself, other documents.

A guess costs little to check, since one forward pass judges all of its tokens, and nothing is taken on trust: see
`typst_lit.inference.decoder`. Most of a document stands word for word in its record, and most of the rest in
any earlier document of the same style.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LONGEST_DRAFT = 64  # tokens
LONGEST_MATCH = 32  # tokens that are compared
CANDIDATES = 8  # places that are compared after the last one, and as many from the end of the text


class IndexedText:
    """Token ids, and the places that each pair of neighbours is followed by."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens."""
        for token in tokens:
            if len(self.tokens) > 1:
                self._places[self.tokens[-2], self.tokens[-1]].append(len(self.tokens))
            self.tokens.append(token)

    def places_after(self, pair: Sequence[int], near: int) -> list[int]:
        """Returns some places that follow this pair: those next after `near`, and the last ones."""
        places = self._places.get((pair[0], pair[1]), [])
        start = bisect_left(places, near)
        return list(dict.fromkeys(places[start : start + CANDIDATES] + places[-CANDIDATES:]))


class DraftCorpus:
    """The latest finished texts, for others to copy from."""

    def __init__(self, size: int = 4) -> None:
        self.texts: deque[IndexedText] = deque(maxlen=size)

    def add(self, text: IndexedText) -> None:
        self.texts.append(text)


class Draft(NamedTuple):
    """Tokens that may come next, and the chance of each that it does, if those before it did."""

    tokens: list[int]
    chance: float


class Drafter:
    """Guesses how one text goes on.

    Args:
        text: the text, prompt and output; whoever owns it appends to it.
        shelf: other texts.
    """

    def __init__(self, text: IndexedText, shelf: DraftCorpus) -> None:
        self.text = text
        self.shelf = shelf
        self._source = text
        self._copied_to: dict[int, int] = {}  # by a source's identity: where the last copy from it ended

    def draft(self, most: int) -> Draft:
        """Returns up to `most` tokens that may come next.

        After `matched` tokens in agreement with the source, the next one agrees with probability
        (matched + 1) / (matched + 2): Laplace's rule of succession.
        """
        if len(self.text.tokens) < 2 or most < 1:
            return Draft([], 0.0)
        source, place, matched = self._best_place()
        if not matched:
            return Draft([], 0.0)
        self._source = source
        self._copied_to[id(source)] = place
        return Draft(source.tokens[place : place + min(most, LONGEST_DRAFT)], (matched + 1) / (matched + 2))

    def accept(self, count: int) -> None:
        """Notes that so many tokens of the last draft were right."""
        if count:
            self._copied_to[id(self._source)] += count

    def _best_place(self) -> tuple[IndexedText, int, int]:
        """Returns where the text's end stood before: source, place after it, tokens that agree (the most there are).

        Of places that agree equally, the next after the last copy is taken: records are copied in order.
        """
        best, best_rank = (self.text, 0, 0), (0, 0)
        for source in (self.text, *self.shelf.texts):
            near = self._copied_to.get(id(source), 0)
            for place in source.places_after(self.text.tokens[-2:], near):
                matched = self._matched(source.tokens, place)
                distance = place - near if place >= near else len(source.tokens)
                if (matched, -distance) > best_rank or not best[2]:
                    best, best_rank = (source, place, matched), (matched, -distance)
        return best

    def _matched(self, tokens: list[int], place: int) -> int:
        ours, count = self.text.tokens, 0
        longest = min(LONGEST_MATCH, place, len(ours))
        while count < longest and tokens[place - 1 - count] == ours[-1 - count]:
            count += 1
        return count


def best_width(drafts: Sequence[Draft], cost: float) -> int:
    """Returns how much of the drafts of a batch to check, so that a pass promises the most tokens for its time.

    A draft of k tokens, each right with chance p, gives 1 + p + ... + p^k tokens, the one that the model adds included.
    Every row is as wide as the widest, and a pass takes the time 1 + cost * rows * (width + 1).

    Args:
        drafts: one a row.
        cost: time of one more token in a forward pass, as a share of the time of the pass.
    """
    rows = len(drafts)
    chances = [1.0] * rows
    tokens, best, best_rate = float(rows), 0, rows / (1 + cost * rows)
    for width in range(1, max(len(draft.tokens) for draft in drafts) + 1):
        for row, draft in enumerate(drafts):
            chances[row] *= draft.chance if len(draft.tokens) >= width else 0.0
        tokens += sum(chances)
        rate = tokens / (1 + cost * rows * (width + 1))
        if rate > best_rate:
            best, best_rate = width, rate
    return best
