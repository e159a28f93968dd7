"""``typst-lit contract``: what training outputs have in common, and storing it with an adapter."""

from __future__ import annotations

from dataclasses import replace

from typst_lit.callbacks.contract_learning import describe, learn
from typst_lit.cli.parser import Command
from typst_lit.contract.learning import MAX_PAIRS
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.data.dataset import read_pairs
from typst_lit.errors import UserError, plural
from typst_lit.model.locations import adapter_directory, adapter_metadata
from typst_lit.model.saving import update_metadata
from typst_lit.typesetting.typesetter import Typesetter


@Command
def contract(*, data: TypstDataModule, adapter: str | None = None, max_pairs: int = MAX_PAIRS) -> None:
    """Show the text contract of training pairs, and store it with an adapter.

    fit does the same. This is for adapters whose contract was learned with another version of Typst, or that have none.

    Args:
        data: The pairs, with the same settings as fit.
        adapter: Directory of the adapter, or of its run, to store the contract with.
        max_pairs: Number of pairs to look at, from all over the data.
    """
    if max_pairs < 1:
        raise UserError(f"must be 1 or more, not {max_pairs}.", setting="max_pairs")
    directory = adapter_directory(adapter) if adapter else None
    pairs = read_pairs(data.pairs(), data.prompt_template.fields, max_pairs)
    with Typesetter(normalize_paths=True) as typesetter:
        learned = learn(pairs, data.prompt_template.body_field, typesetter)
    if learned is None:
        raise UserError(f"none of {plural(len(pairs), 'output')} compiles.", setting="data.path")
    print(describe(learned, len(pairs)))
    if directory is not None:
        update_metadata(directory, replace(adapter_metadata(directory), contract=learned))
        print(f"Stored in {directory}.")
