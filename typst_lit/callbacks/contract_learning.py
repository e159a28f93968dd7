"""The text contract: learned from the training pairs before the first step, and exported with the adapter."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer

from typst_lit.callbacks.base import datamodule, typst_module
from typst_lit.contract.learning import MAX_PAIRS, TrainingPair, learn_contract
from typst_lit.contract.text_contract import TextContract
from typst_lit.data.dataset import Pair
from typst_lit.errors import UserError, plural
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)


class ContractLearning(Callback):
    """Learns the `typst_lit.contract.TextContract` of the training pairs, which `AdapterExport` saves.

    The outputs are compiled, and what holds for at least 95 % of their words and lines, and of the pairs, is the
    contract. It needs a `TypstModule` and a `TypstDataModule`.

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
        self.typesetter = typesetter or Typesetter(normalize_paths=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.max_pairs or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        contract = None
        if trainer.is_global_zero:
            data = datamodule(trainer)
            pairs = data.training_pairs(self.max_pairs)
            contract = learn(pairs, data.prompt_template.body_field, self.typesetter)
            if contract is None:
                log.warning("No training output compiles, so documents will not be compared with the training data.")
            else:
                log.info("%s", describe(contract, len(pairs)))
        typst_module(pl_module).contract = trainer.strategy.broadcast(contract)


def learn(pairs: Sequence[Pair], body_field: str, typesetter: Typesetter) -> TextContract | None:
    """Returns the contract of pairs; None when none of their outputs compiles.

    Args:
        pairs: the training pairs.
        body_field: name of the field with the long text.
        typesetter: what compiles.
    """
    log.info("Compiling %s for the text contract ...", plural(len(pairs), "training output"))
    results = typesetter.compile_many(pair.reference for pair in pairs)
    return learn_contract(
        [
            TrainingPair(pair.fields, body_field, pair.reference, result)
            for pair, result in zip(pairs, results, strict=True)
        ]
    )


def describe(contract: TextContract, num_pairs: int) -> str:
    """Returns a contract in three lines.

    Args:
        contract: the contract.
        num_pairs: training pairs that were looked at.
    """
    properties = {"ordered": "in order", "copied": "each to its end", "exact": "with their punctuation"}
    held = "".join(f", {text}" for name, text in properties.items() if getattr(contract, name))
    free = ", ".join(name or "paragraphs" for name, sources in contract.contexts if "free" in sources)
    deviations = (
        f"; at most {plural(contract.max_deviations, 'word')} per document differ" if contract.max_deviations else ""
    )
    exceptions = f" ({plural(contract.num_exceptions, 'exception')})" if contract.num_exceptions else ""
    return (
        f"Text contract of {contract.num_pairs} of {plural(num_pairs, 'training pair')}{exceptions}, whose outputs "
        f"show {_share(contract.min_fidelity)} words of their records:\n"
        f"  {_share(contract.min_shown)} lines of the record are copied{held}{deviations};\n"
        f"  all words are from the record or the style{f', except in {free}' if free else ''}."
    )


def _share(minimum: float) -> str:
    return "all" if minimum == 1 else f"at least {minimum:.1%} of the"
