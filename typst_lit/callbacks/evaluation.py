"""Generate, compile and score documents of held-out records: some while training goes on, all of them in a test."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from typst_lit.callbacks.page_previews import show_pages
from typst_lit.data.dataset import Pair
from typst_lit.errors import UserError
from typst_lit.metrics.documents import Candidate, Document
from typst_lit.metrics.scoring import Scorer
from typst_lit.progress import LOG_INTERVAL_S
from typst_lit.reporting.report import Report
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Generates documents for held-out records, compiles and scores them.

    In `fit` and `validate` it takes a few records, always the same, from all over the validation set, logs their scores
    as ``val_<metric>``, and shows their pages, sources and diagnostics in TensorBoard. In `test` it takes the whole
    set, logs ``test_<metric>``, and writes ``report.html`` and ``report.json``.

    Args:
        every_n_epochs: in fit, after how many epochs; it happens with the next validation. 0 for never.
        records: how many records in fit and validate; 0 for none.
        test_records: how many in test; by default all.
        report_dir: where test writes its report; by default ``test`` in the run directory.
        typesetter: what compiles.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        records: int = 4,
        test_records: int | None = None,
        report_dir: str | None = None,
        typesetter: Typesetter | None = None,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("records", records), ("test_records", test_records)):
            if value is not None and value < 0:
                raise UserError(f"eval.{name} must be 0 or more, not {value}.")
        self.every_n_epochs = every_n_epochs
        self.records = records
        self.test_records = test_records
        self.report_dir = report_dir
        self.typesetter = typesetter or Typesetter()
        self._evaluated_at = 0.0  # epochs that training had seen by then

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_at": self._evaluated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated_at = state_dict["evaluated_at"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict" and self.records and self.every_n_epochs:
            self.typesetter.isolation()  # what can't be started should say so now, not after an epoch

    # Fit and validate

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        if not self.records or trainer.sanity_checking or not self._due(trainer):
            return
        if module.is_sharded:  # all processes pass a layer together, and documents end at different lengths
            log.info("No documents are generated while the base model is divided among processes.")
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        scorer = self._scorer(pl_module)
        pairs = data.held_out("val", self.records)
        documents = [document for _, document in self._documents(trainer, pl_module, scorer, pairs)]
        self._log(pl_module, scorer, "val", len(pairs))
        if isinstance(trainer.logger, TensorBoardLogger):
            show_pages(trainer.logger.experiment, documents, trainer.global_step)

    def _due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != "fit":
            return True
        if not self.every_n_epochs:
            return False
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        epochs = trainer.global_step / math.ceil(steps) if math.isfinite(steps) else trainer.current_epoch + 1.0
        if int(epochs / self.every_n_epochs) == int(self._evaluated_at / self.every_n_epochs):
            return False
        self._evaluated_at = epochs
        return True

    # Test

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pairs = [] if self.test_records == 0 else data.held_out("test", self.test_records)
        if not pairs:
            return
        scorer = self._scorer(pl_module)
        module: Any = pl_module
        about = {"model": module.base_model, "adapter": module.adapter_path or "none", "data": data.test_origin}
        report = Report(scorer, about)
        for index, document in self._documents(trainer, pl_module, scorer, pairs):
            report.add(document, index)
        values = self._log(pl_module, scorer, "test", len(pairs))
        if trainer.world_size > 1:
            everywhere: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everywhere, report.entries)
            for rank, entries in enumerate(everywhere):
                if rank != trainer.global_rank:
                    report.merge(entries)
        if trainer.is_global_zero:
            directory = Path(self.report_dir or Path(trainer.default_root_dir) / "test")
            log.info("Report: %s", report.write(directory, values))

    # Both

    def _scorer(self, pl_module: LightningModule) -> Scorer:
        module: Any = pl_module
        for metric in module.metrics.values():
            metric.reset()
        scorer = Scorer(self.typesetter, module.metrics)
        for metric in scorer.metrics.values():
            metric.to(pl_module.device)  # where the processes' backend can add up
        return scorer

    def _documents(
        self, trainer: Trainer, pl_module: LightningModule, scorer: Scorer, pairs: Sequence[Pair]
    ) -> Iterator[tuple[int, Document]]:
        """Yields the scored documents of this process's share of the records, with their places."""
        share = range(trainer.global_rank, len(pairs), trainer.world_size)
        log.info("Generating documents for %d held-out records ...", len(pairs))
        candidates = self._candidates(trainer, pl_module, [pairs[index] for index in share])
        yield from zip(share, scorer.score(candidates), strict=True)

    def _candidates(self, trainer: Trainer, pl_module: LightningModule, pairs: Sequence[Pair]) -> Iterator[Candidate]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = pl_module
        told = time.monotonic()
        for start in range(0, len(pairs), data.eval_batch_size):
            batch = pairs[start : start + data.eval_batch_size]
            completions = module.complete(data.encoder.prompts([pair.fields for pair in batch]))
            if time.monotonic() - told > LOG_INTERVAL_S:
                told = time.monotonic()
                log.info("  %d of %d generated", start + len(batch), len(pairs))
            for pair, completion in zip(batch, completions, strict=True):
                yield Candidate(
                    origin=pair.origin,
                    fields=pair.fields,
                    body_field=data.prompt_template.body_field,
                    source=completion.text,
                    reference=pair.reference,
                    finish_reason=completion.finish_reason,
                )

    @staticmethod
    def _log(pl_module: LightningModule, scorer: Scorer, stage: str, count: int) -> dict[str, float]:
        values = scorer.compute()
        for name, value in values.items():
            # The metrics have added up all processes already; averaging equal values keeps Lightning from warning.
            pl_module.log(f"{stage}_{name}", value, sync_dist=True)
        compiled = round(values.get("compile_rate", 0.0) * count)
        shown = [f"{compiled} of {count} documents compile"]
        shown += [f"{name} {values[name]:.3f}" for name in ("fidelity", "page_similarity") if name in values]
        log.info("%s.", ", ".join(shown))
        return values
