"""Drafts: how a text may go on, found where the same words stood before."""

from __future__ import annotations

from typst_lit.inference.prompt_lookup import LONGEST_DRAFT, Draft, DraftCorpus, Drafter, IndexedText, best_width


def test_the_longest_agreement_wins() -> None:
    text = IndexedText([1, 2, 3, 40, 41, 42, 43, 9, 9, 8, 2, 3, 50, 51, 9, 1, 2, 3])
    assert Drafter(text, DraftCorpus()).draft(4).tokens == [40, 41, 42, 43]


def test_of_equal_agreements_the_next_in_order_wins() -> None:
    text = IndexedText([7, 8, 30, 31, 7, 8, 40, 41, 7, 8, 50, 51, 99, 7, 8])
    drafter = Drafter(text, DraftCorpus())
    assert drafter.draft(2).tokens == [30, 31]
    drafter.accept(2)
    text.extend([30, 31, 98, 7, 8])
    assert drafter.draft(2).tokens == [40, 41]


def test_finished_documents_are_copied_from_too() -> None:
    shelf = DraftCorpus(size=1)
    shelf.add(IndexedText([4, 5, 60, 61]))
    drafter = Drafter(IndexedText([1, 2, 3, 4, 5]), shelf)
    assert drafter.draft(9).tokens == [60, 61]
    shelf.add(IndexedText([1]))
    assert drafter.draft(9).tokens == []


def test_nothing_is_drafted_without_an_agreement_or_a_need() -> None:
    assert Drafter(IndexedText([1]), DraftCorpus()).draft(5).tokens == []
    assert Drafter(IndexedText([1, 2, 3, 4]), DraftCorpus()).draft(5).tokens == []
    assert Drafter(IndexedText([1, 2, 3, 1, 2]), DraftCorpus()).draft(0).tokens == []


def test_the_chance_grows_with_the_agreement() -> None:
    chances = []
    for matched in (2, 5, 20):
        run = list(range(matched))
        chances.append(Drafter(IndexedText([*run, 99, 100, 98, *run]), DraftCorpus()).draft(1).chance)
    assert chances == [3 / 4, 6 / 7, 21 / 22]


def test_more_of_a_draft_is_checked_where_it_is_likely_and_cheap() -> None:
    long = list(range(LONGEST_DRAFT))
    widths = [best_width([Draft(long, (m + 1) / (m + 2))], 1 / 32) for m in (2, 4, 8, 16, 32)]
    assert widths == sorted(widths) and widths[0] < 10 and widths[-1] > 30
    assert best_width([Draft(long, 0.5)], 10.0) == 0
    assert best_width([Draft(long, 0.99)], 1 / 1024) == LONGEST_DRAFT
    assert best_width([Draft([], 0.0), Draft([], 0.0)], 1 / 32) == 0


def test_one_row_does_not_make_a_batch_wide() -> None:
    sure, none = Draft(list(range(LONGEST_DRAFT)), 0.97), Draft([], 0.0)
    alone, with_others, all_sure = (best_width(drafts, 1 / 32) for drafts in ([sure], [sure, *[none] * 7], [sure] * 8))
    assert with_others < all_sure <= alone
