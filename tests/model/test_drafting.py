"""Drafts: how a text may go on, found where the same words stood before."""

from __future__ import annotations

from typst_lit.model.drafting import LONGEST_DRAFT, Drafter, IndexedText, Shelf, best_length


def test_the_longest_agreement_wins() -> None:
    text = IndexedText([1, 2, 3, 40, 41, 42, 43, 9, 9, 8, 2, 3, 50, 51, 9, 1, 2, 3])
    assert Drafter(text, Shelf(), cost=0.01).draft(4) == [40, 41, 42, 43]


def test_of_equal_agreements_the_next_in_order_wins() -> None:
    text = IndexedText([7, 8, 30, 31, 7, 8, 40, 41, 7, 8, 50, 51, 99, 7, 8])
    drafter = Drafter(text, Shelf(), cost=0.01)
    assert drafter.draft(2) == [30, 31]
    drafter.accept(2)
    text.extend([30, 31, 98, 7, 8])
    assert drafter.draft(2) == [40, 41]


def test_finished_documents_are_copied_from_too() -> None:
    shelf = Shelf(size=1)
    shelf.add(IndexedText([4, 5, 60, 61]))
    drafter = Drafter(IndexedText([1, 2, 3, 4, 5]), shelf, cost=0.01)
    assert drafter.draft(9) == [60, 61]
    shelf.add(IndexedText([1]))
    assert drafter.draft(9) == []


def test_nothing_is_drafted_without_an_agreement_or_a_need() -> None:
    assert Drafter(IndexedText([1]), Shelf(), 0.01).draft(5) == []
    assert Drafter(IndexedText([1, 2, 3, 4]), Shelf(), 0.01).draft(5) == []
    assert Drafter(IndexedText([1, 2, 3, 1, 2]), Shelf(), 0.01).draft(0) == []


def test_drafts_grow_with_the_agreement_and_shrink_with_the_cost() -> None:
    lengths = [best_length(matched, 1 / 32, LONGEST_DRAFT) for matched in (2, 4, 8, 16, 32)]
    assert lengths == sorted(lengths) and lengths[0] < 10 and lengths[-1] > 30
    assert best_length(2, 1.0, LONGEST_DRAFT) == 0
    assert best_length(32, 1 / 1024, LONGEST_DRAFT) == LONGEST_DRAFT
