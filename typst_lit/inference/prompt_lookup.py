"""Prompt lookup: drafts for speculative decoding, copied from where the same n-gram occurred before.

The text is searched for in the record, in the document so far, and in the latest other documents. One forward pass
verifies all tokens of a draft (`typst_lit.inference.decoder`), so a wrong one costs time, never another document. Most
of a document is a literal copy of its record, and most of the rest of any earlier document in the same style.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_DRAFT_TOKENS = 64
MAX_MATCH_TOKENS = 32  # how far back two positions are compared
MAX_CANDIDATES = 8  # positions that are compared after the last copy, and as many from the end of the text


class IndexedText:
    """Token ids with an index from each bigram to the positions that follow it."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._positions: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens."""
        for token in tokens:
            if len(self.tokens) > 1:
                self._positions[self.tokens[-2], self.tokens[-1]].append(len(self.tokens))
            self.tokens.append(token)

    def truncate(self, length: int) -> None:
        """Drops the tokens after the first `length` ones."""
        while len(self.tokens) > length:
            self.tokens.pop()
            if len(self.tokens) > 1:
                bigram = self.tokens[-2], self.tokens[-1]
                self._positions[bigram].pop()  # positions ascend: the last one is that of the dropped token
                if not self._positions[bigram]:
                    del self._positions[bigram]

    def positions_after(self, bigram: Sequence[int], near: int) -> list[int]:
        """Returns some positions that follow a bigram: the next ones from `near` on, and the last ones."""
        positions = self._positions.get((bigram[0], bigram[1]), [])
        start = bisect_left(positions, near)
        return list(dict.fromkeys(positions[start : start + MAX_CANDIDATES] + positions[-MAX_CANDIDATES:]))


class DraftCorpus:
    """The latest finished documents, which drafts are copied from in addition to a document's own text.

    Args:
        size: how many documents to retain.
    """

    def __init__(self, size: int = 4) -> None:
        self.texts: deque[IndexedText] = deque(maxlen=size)

    def add(self, text: IndexedText) -> None:
        """Adds a finished document; the oldest one leaves."""
        self.texts.append(text)


class Draft(NamedTuple):
    """Tokens that may come next, and the probability of each that it does, given that those before it did."""

    tokens: list[int]
    probability: float


class Copy(NamedTuple):
    """A draft that was taken from a source.

    Attributes:
        text_length: length of the text before it.
        source: the id() of the source.
        position: where the draft begins in the source.
        previous: where the copy before from this source ended.
    """

    text_length: int
    source: int
    position: int
    previous: int


class PromptLookup:
    """Drafts the continuation of one text.

    Args:
        text: the text, prompt and output; its owner appends to it and truncates it.
        corpus: other texts.
    """

    def __init__(self, text: IndexedText, corpus: DraftCorpus) -> None:
        self.text = text
        self.corpus = corpus
        self._copies: list[Copy] = []
        self._copied_to: dict[int, int] = {}  # by the id() of a source: where the last copy from it ended

    def draft(self, max_tokens: int) -> Draft:
        """Returns up to `max_tokens` tokens that may come next.

        After `num_matched` tokens in agreement with the source, the next one agrees with probability
        (num_matched + 1) / (num_matched + 2): Laplace's rule of succession.
        """
        if len(self.text.tokens) < 2 or max_tokens < 1:
            return Draft([], 0.0)
        source, position, num_matched = self._longest_match()
        if not num_matched:
            return Draft([], 0.0)
        self._copies.append(Copy(len(self.text.tokens), id(source), position, self._copied_to.get(id(source), 0)))
        self._copied_to[id(source)] = position
        end = position + min(max_tokens, MAX_DRAFT_TOKENS)
        return Draft(source.tokens[position:end], (num_matched + 1) / (num_matched + 2))

    def accept(self, count: int) -> None:
        """Records how many tokens of the last draft were right."""
        if count:
            self._copied_to[self._copies[-1].source] += count

    def truncate(self, length: int) -> None:
        """Restores what was known when the text had `length` tokens; its owner truncates the text."""
        while self._copies and self._copies[-1].text_length >= length:
            copy = self._copies.pop()
            self._copied_to[copy.source] = copy.previous
        if self._copies:
            copy = self._copies[-1]
            end = copy.position + length - copy.text_length
            self._copied_to[copy.source] = min(self._copied_to[copy.source], end)

    def _longest_match(self) -> tuple[IndexedText, int, int]:
        """Returns where the text's end occurred before: source, the position after it, and tokens that agree.

        Of positions with equal agreement, the next after the last copy is taken: records are copied in order.
        """
        best, best_rank = (self.text, 0, 0), (0, 0)
        for source in (self.text, *self.corpus.texts):
            near = self._copied_to.get(id(source), 0)
            for position in source.positions_after(self.text.tokens[-2:], near):
                num_matched = self._num_matched(source.tokens, position)
                distance = position - near if position >= near else len(source.tokens)
                if (num_matched, -distance) > best_rank or not best[2]:
                    best, best_rank = (source, position, num_matched), (num_matched, -distance)
        return best

    def _num_matched(self, tokens: list[int], position: int) -> int:
        own, count = self.text.tokens, 0
        limit = min(MAX_MATCH_TOKENS, position, len(own))
        while count < limit and tokens[position - 1 - count] == own[-1 - count]:
            count += 1
        return count


def best_draft_length(drafts: Sequence[Draft], token_cost: float) -> int:
    """Returns how many tokens of a batch's drafts to verify, so that a pass gives the most tokens for its time.

    A draft of k tokens, each right with probability p, gives 1 + p + ... + p^k tokens, including the one that the model
    adds. All sequences are padded to the longest draft, and a pass takes the time
    1 + token_cost * sequences * (length + 1).

    Args:
        drafts: one per sequence.
        token_cost: time of one more token in a forward pass, as a fraction of the time of the pass.
    """
    count = len(drafts)
    probabilities = [1.0] * count
    tokens, best, best_rate = float(count), 0, count / (1 + token_cost * count)
    for length in range(1, max(len(draft.tokens) for draft in drafts) + 1):
        for index, draft in enumerate(drafts):
            probabilities[index] *= draft.probability if len(draft.tokens) >= length else 0.0
        tokens += sum(probabilities)
        rate = tokens / (1 + token_cost * count * (length + 1))
        if rate > best_rate:
            best, best_rate = length, rate
    return best
