from __future__ import annotations

import random

import numpy as np
import pytest
from datasets import Dataset

from typst_lit.data.minhash import find_near_duplicates, minhash_signature
from typst_lit.data.splitting import split_by_group


def table(*texts: str) -> Dataset:
    """Returns a table of signatures whose rows are stored in another order, as those of a split are."""
    stored = Dataset.from_dict({"minhash": [minhash_signature(text) for text in reversed(texts)]})
    return stored.select(range(len(texts) - 1, -1, -1))


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides_and_the_share_is_near(seed) -> None:
    generator = random.Random(seed)
    groups = [f"g{generator.randrange(40)}" for _ in range(1000)]
    train, held = split_by_group(groups, 0.1, seed)
    assert sorted([*train, *held]) == list(range(1000))
    assert not {groups[i] for i in train} & {groups[i] for i in held}
    assert 70 <= len(held) <= 130


def test_of_two_groups_one_is_held_out() -> None:
    train, held = split_by_group(["a"] * 35 + ["b"] * 35, 0.1, seed=0)
    assert len(train) == len(held) == 35


def test_a_large_fraction_still_leaves_a_group_to_train_on() -> None:
    train, _ = split_by_group(["a", "b", "b"], 0.99, seed=0)
    assert len(train)


def words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghij", k=6)) for _ in range(count)]


def test_similarity_is_near_the_true_jaccard_index() -> None:
    generator = random.Random(0)
    errors = []
    for _ in range(100):
        common, one, other = (words(generator, n) for n in (400, generator.randrange(300), generator.randrange(300)))
        first, second = common + one, common + other
        sets = [{tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in (first, second)]
        true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        pairs = find_near_duplicates(table(" ".join(first)), table(" ".join(second)), threshold=0)
        errors.append((pairs[0][2] if pairs else 0.0) - true)
    assert abs(np.mean(errors)) < 0.03 and np.std(errors) < 0.1  # 32 hashes: a standard deviation of about 0.08


def test_permuted_paragraphs_are_found_and_other_texts_are_not() -> None:
    generator = random.Random(1)
    paragraphs = [" ".join(words(generator, 60)) for _ in range(8)]
    shuffled = generator.sample(paragraphs, len(paragraphs))
    other = " ".join(words(generator, 500))
    duplicates = find_near_duplicates(table(other, "\n".join(paragraphs)), table("\n".join(shuffled), "x"))
    assert [(held, train) for held, train, _ in duplicates] == [(0, 1)]
    assert duplicates[0][2] > 0.8


def test_empty_and_short_texts_have_a_signature() -> None:
    assert not len(minhash_signature("")) and len(minhash_signature("two words")) == 1
