"""Documents of held-out records, generated, compiled and scored: a few during training, all of them in a test."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics import Metric

from typst_lit.callbacks.base import datamodule, typst_module
from typst_lit.callbacks.generation import build_generator
from typst_lit.callbacks.page_previews import show_pages
from typst_lit.data.dataset import Pair
from typst_lit.errors import UserError
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.inference.generator import Generator
from typst_lit.inference.records import InputRecord
from typst_lit.inference.settings import GenerationSettings
from typst_lit.metrics.documents import Candidate, Document
from typst_lit.metrics.scoring import Scorer
from typst_lit.model.module import TypstModule
from typst_lit.reporting.report import Report, check_report
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Generates documents for held-out records, compiles and scores them.

    What is scored is what ``generate`` gives in a single attempt: documents that do not compile are repaired where that
    is certain. ``compile_rate`` counts those that compile without repairs.

    In ``fit`` and ``validate`` it takes a few records, always the same, from all over the validation set, logs their
    scores as ``val_<metric>``, and shows their pages, sources and diagnostics in TensorBoard. In ``test`` it takes the
    whole set, logs ``test_<metric>``, and writes ``report.html`` and ``report.json``.

    It needs a `TypstModule` and a `TypstDataModule`. While the base model is sharded, nothing is generated.

    Args:
        every_n_epochs: in fit, epochs between two evaluations, each with the next validation; 0 for none.
        records: number of records in fit and validate; 0 for none.
        test_records: number of records in test; by default all.
        report_dir: directory of the report of test; by default ``test`` in the run directory.
        overwrite: replace a report.html or report.json there that another program wrote.
        generation: how to sample.
        typesetter: what compiles.

    Raises:
        UserError: if a number is negative.

    Example:
        >>> from typst_lit import GenerationSettings
        >>> from typst_lit.callbacks import Evaluation
        >>> Evaluation(records=8, generation=GenerationSettings(temperature=0)).records
        8
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        records: int = 4,
        test_records: int | None = None,
        report_dir: str | None = None,
        overwrite: bool = False,
        generation: GenerationSettings | None = None,
        typesetter: Typesetter | None = None,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("records", records), ("test_records", test_records)):
            if value is not None and value < 0:
                raise UserError(f"must be 0 or more, not {value}.", setting=f"eval.{name}")
        self.every_n_epochs = every_n_epochs
        self.records = records
        self.test_records = test_records
        self.report_dir = report_dir
        self.overwrite = overwrite
        self.generation = generation or GenerationSettings()
        self.typesetter = typesetter or Typesetter()
        self._generator: Generator | None = None
        self._evaluated_at = 0.0  # epochs trained at the last evaluation

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_at": self._evaluated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated_at = state_dict["evaluated_at"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict" and self.records and self.every_n_epochs:
            self.typesetter.isolation()  # if processes can't be started, say so now, not after an epoch
        if stage == "test" and trainer.is_global_zero and self.test_records != 0:
            check_report(self._report_directory(trainer), self.overwrite)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._generator = None

    # Fit and validate

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = typst_module(pl_module)
        if not self.records or trainer.sanity_checking or not self._due(trainer):
            return
        if module.is_sharded:  # all ranks pass a layer together, and documents end at different lengths
            log.info("No documents are generated while the base model is sharded.")
            return
        scorer = self._scorer(module)
        pairs = datamodule(trainer).held_out("val", self.records)
        documents = [document for _, document in self._documents(trainer, module, scorer, pairs)]
        self._log(module, scorer, "val", len(pairs))
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
        module, data = typst_module(pl_module), datamodule(trainer)
        pairs = [] if self.test_records == 0 else data.held_out("test", self.test_records)
        if not pairs:
            return
        scorer = self._scorer(module)
        about = {"model": module.base_model, "adapter": module.adapter_path or "none", "data": data.test_origin}
        report = Report(scorer, about)
        for index, document in self._documents(trainer, module, scorer, pairs):
            report.add(document, index)
        values = self._log(module, scorer, "test", len(pairs))
        if trainer.world_size > 1:
            entries_by_rank: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(entries_by_rank, report.entries)
            for rank, entries in enumerate(entries_by_rank):
                if rank != trainer.global_rank:
                    report.merge(entries)
        if trainer.is_global_zero:
            log.info("Report: %s", report.write(self._report_directory(trainer), values, self.overwrite))

    def _report_directory(self, trainer: Trainer) -> Path:
        return Path(self.report_dir or Path(trainer.default_root_dir) / "test")

    # Both

    def _scorer(self, module: TypstModule) -> Scorer:
        metrics = {name: cast(Metric, metric) for name, metric in module.metrics.items()}
        for metric in metrics.values():
            metric.reset()
        scorer = Scorer(self.typesetter, metrics)
        for metric in scorer.metrics.values():
            metric.to(module.device)  # the device on which ranks can sum their states
        return scorer

    def _documents(
        self, trainer: Trainer, module: TypstModule, scorer: Scorer, pairs: Sequence[Pair]
    ) -> Iterator[tuple[int, Document]]:
        """Yields the scored documents of this rank's share of the pairs, in order, with their indices in ``pairs``."""
        share = range(trainer.global_rank, len(pairs), trainer.world_size)
        log.info("Generating documents for %d held-out records ...", len(pairs))
        if self._generator is None:  # one for all evaluations: each drafts from the documents of those before
            self._generator = build_generator(module, datamodule(trainer), self.generation, self.typesetter)
        candidates = self._candidates(self._generator, [pairs[index] for index in share])
        yield from zip(share, scorer.score(candidates), strict=True)

    def _candidates(self, generator: Generator, pairs: Sequence[Pair]) -> Iterator[Candidate]:
        body_field, contract = generator.encoder().template.body_field, generator.contracts[None]
        documents = generator.generate([InputRecord(pair.fields, pair.origin) for pair in pairs])
        for pair, document in zip(pairs, _in_order(documents), strict=True):
            yield Candidate(
                origin=pair.origin,
                fields=pair.fields,
                body_field=body_field,
                source=document.source,
                reference=pair.reference,
                finish_reason=document.finish_reason,
                repairs=[str(repair) for repair in document.repairs],
                contract=contract,
            )

    @staticmethod
    def _log(module: TypstModule, scorer: Scorer, stage: str, num_documents: int) -> dict[str, float]:
        values = scorer.compute()
        for name, value in values.items():
            # The metrics are summed over all ranks already; averaging equal values only keeps Lightning from warning.
            module.log(f"{stage}_{name}", value, sync_dist=True)
        as_written, after_repair, clean = (
            round(values.get(name, 0.0) * num_documents)
            for name in ("compile_rate", "compile_rate_after_repair", "clean_rate")
        )
        summary = [f"{as_written} of {num_documents} documents compile as written", f"{after_repair} after repair"]
        summary += [f"{clean} are clean"] if "clean_rate" in values else []
        summary += [f"{name} {values[name]:.3f}" for name in ("fidelity", "page_similarity") if name in values]
        log.info("%s.", ", ".join(summary))
        return values


def _in_order(documents: Iterator[GeneratedDocument]) -> Iterator[GeneratedDocument]:
    """Yields documents in the order of their indices: the sums of the metrics then do not depend on the batch size."""
    early: dict[int, GeneratedDocument] = {}
    index = 0
    for document in documents:
        early[document.index] = document
        while index in early:
            yield early.pop(index)
            index += 1
