"""Guesses of how a document goes on, copied from where the same words stood before: record, itself, other documents.

A guess costs little to check, since one forward pass judges all of its tokens, and nothing is taken on trust: see
`typst_lit.model.decoding`. Most of a document stands word for word in its record, and most of the rest in any earlier
document of the same style.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

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


class Shelf:
    """The latest finished texts, for others to copy from."""

    def __init__(self, size: int = 4) -> None:
        self.texts: deque[IndexedText] = deque(maxlen=size)

    def add(self, text: IndexedText) -> None:
        self.texts.append(text)


class Drafter:
    """Guesses how one text goes on.

    Args:
        text: the text, prompt and output; whoever owns it appends to it.
        shelf: other texts.
        cost: time of one more token in a forward pass, as a share of the time of the pass.
    """

    def __init__(self, text: IndexedText, shelf: Shelf, cost: float) -> None:
        self.text = text
        self.shelf = shelf
        self.cost = cost
        self._source = text
        self._copied_to: dict[int, int] = {}  # by a source's identity: where the last copy from it ended

    def draft(self, most: int) -> list[int]:
        """Returns up to `most` tokens that may come next: the more, the longer the text has agreed with the source."""
        if len(self.text.tokens) < 2:
            return []
        source, place, matched = self._best_place()
        if not matched:
            return []
        available = source.tokens[place : place + min(most, LONGEST_DRAFT)]
        length = best_length(matched, self.cost, len(available))
        self._source = source
        self._copied_to[id(source)] = place
        return available[:length]

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


def best_length(matched: int, cost: float, most: int) -> int:
    """Returns the length of draft that promises the most tokens for its time.

    After `matched` tokens in agreement the next one agrees with probability (matched + 1) / (matched + 2), Laplace's
    rule of succession. A draft of length k then gives (1 - p^(k+1)) / (1 - p) tokens, the one that the model adds
    included, in the time 1 + k * cost.
    """
    p = (matched + 1) / (matched + 2)
    tokens, best, best_rate = 1.0, 0, 1.0
    for length in range(1, most + 1):
        tokens += p**length
        rate = tokens / (1 + length * cost)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
