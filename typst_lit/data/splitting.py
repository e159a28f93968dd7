"""Holding records out for validation, by groups, so that validation measures what was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from typst_lit.data.records import Field
from typst_lit.data.table import column
from typst_lit.errors import UserError

log = logging.getLogger(__name__)


def group_names(table: Dataset, group_by: str, fields: Sequence[Field]) -> list[str]:
    """Returns the group of each record of a table: (N,).

    Args:
        table: the records.
        group_by: the field whose values are the groups; ``auto``: ``project_title`` if it has several values, or else
            ``none``; ``none``: each record is a group.
        fields: the fields of the records.

    Raises:
        UserError: if there is no such field, or all records have the same value in it.
    """
    names = [field.name for field in fields]
    if group_by == "auto":
        has_projects = "project_title" in names and len(table.unique("project_title")) > 1
        group_by = "project_title" if has_projects else "none"
    if group_by == "none":
        return [str(index) for index in range(len(table))]
    if group_by not in names:
        raise UserError(
            f"there is no field '{group_by}'.", setting="data.group_by", hint=f"Use one of {', '.join(names)}, or none."
        )
    groups = [str(value) for value in column(table, group_by)]
    if len(set(groups)) < 2:
        raise UserError(
            f"all {len(groups)} records have the same '{group_by}', so no group can be held out.",
            setting="data.group_by",
            hint="Use `data.group_by=none`, another field, `data.val_path`, or `data.val_fraction=0`.",
        )
    return groups


def split_by_group(groups: Sequence[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out complete groups: about ``fraction`` of the records, and at least one group.

    Args:
        groups: (N,) group name of each record.
        fraction: share of the records to hold out, between 0 and 1.
        seed: decides which.

    Returns:
        Indices to train on and indices held out, both ascending. No group has records on both sides.

    >>> split_by_group(["a", "a", "b", "a", "c", "c"], 1 / 3, seed=0)
    (array([0, 1, 2, 3]), array([4, 5]))
    """
    names, group_indices, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    target = fraction * len(groups)
    held_out: list[int] = []
    total = 0
    shuffled = np.random.default_rng(seed).permutation(len(names))
    for group in shuffled:
        if abs(total + sizes[group] - target) < abs(total - target):
            held_out.append(group)
            total += sizes[group]
    if not held_out:
        held_out = [min(shuffled, key=lambda group: sizes[group])]
    elif len(held_out) == len(names):
        held_out.remove(max(held_out, key=lambda group: sizes[group]))
    is_held_out = np.isin(group_indices, held_out)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def log_split(num_train: int, num_held_out: int, fraction: float | None) -> None:
    """Logs how many records are held out, and warns if they are far more than ``fraction``.

    Args:
        num_train: number of training records.
        num_held_out: number of held-out records.
        fraction: share of the records that was to be held out; None if the held-out records have a file of their own.
    """
    total = num_train + num_held_out
    share = num_held_out / total
    log.info("Held out for validation: %d of %d records (%.0f %%).", num_held_out, total, 100 * share)
    if fraction is not None and share > max(0.3, 2 * fraction):
        log.warning(
            "Complete groups are held out, so that validation has %.0f %% of the records instead of %.0f %%. For a "
            "finer split, use data with more groups, or `data.val_path`.",
            100 * share,
            100 * fraction,
        )
