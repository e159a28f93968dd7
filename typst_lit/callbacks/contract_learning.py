"""The text contract: learned from the training pairs before the first step, and exported with the adapter."""

from __future__ import annotations

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from typst_lit.callbacks.base import datamodule, typst_module
from typst_lit.contract.learning import MAX_PAIRS, TrainingPair, learn_contract
from typst_lit.contract.text_contract import TextContract
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UserError, plural
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)


class ContractLearning(Callback):
    """Learns the `typst_lit.contract.TextContract` of the training pairs, which `AdapterExport` saves.

    The outputs are compiled, and what held in at least 95 % of the pairs is the contract. It needs a `TypstModule` and
    a `TypstDataModule`.

    Args:
        max_pairs: number of training pairs to look at, from all over the data; 0 learns no contract.
        typesetter: what compiles.

    Raises:
        UserError: if the number is negative.

    Example:
        >>> from typst_lit.callbacks import ContractLearning
        >>> ContractLearning(max_pairs=100).max_pairs
        100
    """

    def __init__(self, max_pairs: int = MAX_PAIRS, typesetter: Typesetter | None = None) -> None:
        if max_pairs < 0:
            raise UserError(f"must be 0 or more, not {max_pairs}.", setting="contract.max_pairs")
        self.max_pairs = max_pairs
        self.typesetter = typesetter or Typesetter()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.max_pairs or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        contract = self._learn(datamodule(trainer)) if trainer.is_global_zero else None
        typst_module(pl_module).contract = trainer.strategy.broadcast(contract)

    def _learn(self, data: TypstDataModule) -> TextContract | None:
        pairs = data.training_pairs(self.max_pairs)
        log.info("Compiling %s for the text contract ...", plural(len(pairs), "training output"))
        results = self.typesetter.compile_many(pair.reference for pair in pairs)
        contract = learn_contract(
            [
                TrainingPair(pair.fields, data.prompt_template.body_field, pair.reference, result)
                for pair, result in zip(pairs, results, strict=True)
            ]
        )
        if contract is None:
            log.warning("No training output compiles, so documents will not be compared with the training data.")
        else:
            log.info("%s", describe(contract, len(pairs)))
        return contract


def describe(contract: TextContract, num_pairs: int) -> str:
    """Returns a contract in three lines.

    Args:
        contract: the contract.
        num_pairs: training pairs that were looked at.
    """
    properties = {
        "ordered": "in order",
        "complete": "all of them",
        "copied": "each to its end",
        "exact": "with their punctuation",
    }
    held = [text for name, text in properties.items() if getattr(contract, name)]
    exceptions = ", ".join(f"{properties[name]}: not in {count}" for name, count in contract.exceptions)
    free = ", ".join(name or "paragraphs" for name, sources in contract.contexts if "free" in sources)
    return (
        f"Text contract of {contract.num_pairs} of {plural(num_pairs, 'training pair')}, whose outputs show at least "
        f"{contract.min_fidelity:.1%} of the words of their records:\n"
        f"  lines of the record are copied{': ' if held else ', changed or not'}{', '.join(held)}"
        f"{f' ({exceptions})' if exceptions else ''};\n"
        f"  all words are from the record or the style{f', except in {free}' if free else ''}."
    )
