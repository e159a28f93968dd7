"""Prompt lookup: drafts copied from where the same n-gram occurred before."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from typst_lit.inference.prompt_lookup import (
    MAX_DRAFT_TOKENS,
    Draft,
    DraftCorpus,
    IndexedText,
    PromptLookup,
    best_draft_length,
)


def test_the_longest_match_wins() -> None:
    text = IndexedText([1, 2, 3, 40, 41, 42, 43, 9, 9, 8, 2, 3, 50, 51, 9, 1, 2, 3])
    assert PromptLookup(text, DraftCorpus()).draft(4).tokens == [40, 41, 42, 43]


def test_of_equal_matches_the_next_in_order_wins() -> None:
    text = IndexedText([7, 8, 30, 31, 7, 8, 40, 41, 7, 8, 50, 51, 99, 7, 8])
    lookup = PromptLookup(text, DraftCorpus())
    assert lookup.draft(2).tokens == [30, 31]
    lookup.accept(2)
    text.extend([30, 31, 98, 7, 8])
    assert lookup.draft(2).tokens == [40, 41]


def test_finished_documents_are_copied_from_too() -> None:
    corpus = DraftCorpus(size=1)
    corpus.add(IndexedText([4, 5, 60, 61]))
    lookup = PromptLookup(IndexedText([1, 2, 3, 4, 5]), corpus)
    assert lookup.draft(9).tokens == [60, 61]
    corpus.add(IndexedText([1]))
    assert lookup.draft(9).tokens == []


def test_nothing_is_drafted_without_a_match_or_when_no_token_is_left() -> None:
    assert PromptLookup(IndexedText([1]), DraftCorpus()).draft(5).tokens == []
    assert PromptLookup(IndexedText([1, 2, 3, 4]), DraftCorpus()).draft(5).tokens == []
    assert PromptLookup(IndexedText([1, 2, 3, 1, 2]), DraftCorpus()).draft(0).tokens == []


def test_the_probability_grows_with_the_length_of_the_match() -> None:
    probabilities = []
    for num_matched in (2, 5, 20):
        run = list(range(num_matched))
        probabilities.append(PromptLookup(IndexedText([*run, 99, 100, 98, *run]), DraftCorpus()).draft(1).probability)
    assert probabilities == [3 / 4, 6 / 7, 21 / 22]


def test_more_of_a_draft_is_verified_when_it_is_likely_and_cheap() -> None:
    long = list(range(MAX_DRAFT_TOKENS))
    lengths = [best_draft_length([Draft(long, (m + 1) / (m + 2))], 1 / 32) for m in (2, 4, 8, 16, 32)]
    assert lengths == sorted(lengths) and lengths[0] < 10 and lengths[-1] > 30
    assert best_draft_length([Draft(long, 0.5)], 10.0) == 0
    assert best_draft_length([Draft(long, 0.99)], 1 / 1024) == MAX_DRAFT_TOKENS
    assert best_draft_length([Draft([], 0.0), Draft([], 0.0)], 1 / 32) == 0


def test_one_long_draft_does_not_pad_a_batch_to_its_length() -> None:
    sure, none = Draft(list(range(MAX_DRAFT_TOKENS)), 0.97), Draft([], 0.0)
    alone, with_others, all_sure = (
        best_draft_length(drafts, 1 / 32) for drafts in ([sure], [sure, *[none] * 7], [sure] * 8)
    )
    assert with_others < all_sure <= alone


TOKENS = st.lists(st.integers(0, 3), max_size=8)  # of few kinds, so that bigrams occur again


@settings(max_examples=200, deadline=None)
@given(st.lists(TOKENS | st.integers(0, 20), max_size=12))
def test_a_text_that_was_truncated_has_the_index_of_a_fresh_one(actions) -> None:
    text, tokens = IndexedText(), []
    for action in actions:
        if isinstance(action, int):
            text.truncate(action)
            del tokens[action:]
        else:
            text.extend(action)
            tokens += action
        fresh = IndexedText(tokens)
        assert (text.tokens, text._positions) == (fresh.tokens, fresh._positions)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.lists(st.tuples(TOKENS, st.integers(0, 9)), max_size=8))
def test_a_lookup_that_was_truncated_drafts_as_before(prompt, rounds) -> None:
    """Each round drafts, accepts a part of the draft and appends tokens; going back gives each earlier draft again."""
    corpus = DraftCorpus()
    corpus.add(IndexedText([0, 1, 2, 3, 3, 2, 1, 0, 0, 2, 1, 3]))
    text = IndexedText(prompt)
    lookup = PromptLookup(text, corpus)
    drafts = []
    for tokens, count in rounds:
        draft = lookup.draft(9)
        drafts.append((len(text.tokens), draft))
        accepted = draft.tokens[:count]
        lookup.accept(len(accepted))
        text.extend([*accepted, *tokens, 0])
    for length, draft in reversed(drafts):
        text.truncate(length)
        lookup.truncate(length)
        assert lookup.draft(9) == draft


def test_a_lookup_truncated_within_a_copy_resumes_there() -> None:
    text = IndexedText([7, 8, 30, 7, 8, 40, 7, 8, 30, 99, 7, 8])
    lookup = PromptLookup(text, DraftCorpus())
    assert lookup.draft(5).tokens == [30, 7, 8, 40, 7]
    lookup.accept(5)
    text.extend([30, 7, 8, 40, 7, 8])
    text.truncate(15)
    lookup.truncate(15)
    assert lookup.draft(2).tokens == [40, 7]
