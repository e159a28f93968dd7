"""What ``predict`` generates, written as ``generate`` writes it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from typst_lit.callbacks.base import datamodule, typst_module
from typst_lit.callbacks.generation import build_generator, default_settings, trained_model_identity
from typst_lit.data.batching import RecordBatch
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UserError
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.inference.generator import Generator
from typst_lit.inference.model_spec import provenance
from typst_lit.inference.outputs import RecordResults, check_documents, write_document
from typst_lit.inference.records import InputRecord
from typst_lit.inference.settings import GenerationSettings
from typst_lit.inference.summary import DocumentCounts, log_document
from typst_lit.manifest import check_separate
from typst_lit.model.module import TypstModule
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)


class PredictionWriter(BasePredictionWriter):
    """Writes the documents of ``predict``: the JSON list that ``typst-lit generate`` writes, and a file per document.

    The list is valid after every batch. When the same command runs again, records that have a result are not
    generated again; ``generate`` with the same settings continues it, too. Each document is written as a ``.typ`` file
    and, if it compiles, as a PDF.

    The command line sets the module's ``generate_documents`` to `generate`. It needs a `TypstModule` and a
    `TypstDataModule`.

    Args:
        output: the JSON file; by default ``predictions/predictions.json`` in the run directory.
        typ_dir: directory of the ``.typ`` files and PDFs; by default that of ``output``.
        overwrite: start again where results exist, and replace files of other programs.
        compile: compile the documents, and repair them where that is certain.
        attempts: maximum number of attempts at a document, until it is clean.
        generation: how to sample.
        typesetter: what compiles.

    Raises:
        UserError: if ``attempts`` is below 1.

    Example:
        >>> from typst_lit.callbacks import PredictionWriter
        >>> PredictionWriter(output="documents.json", attempts=3).compile
        True
    """

    def __init__(
        self,
        output: str | None = None,
        typ_dir: str | None = None,
        overwrite: bool = False,
        compile: bool = True,
        attempts: int = 1,
        generation: GenerationSettings | None = None,
        typesetter: Typesetter | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        if attempts < 1:
            raise UserError(f"must be 1 or more, not {attempts}.", setting="predict.attempts")
        self.output = output
        self.typ_dir = typ_dir
        self.overwrite = overwrite
        self.compile = compile
        self.attempts = attempts
        self.generation = generation or GenerationSettings()
        self.typesetter = (typesetter or Typesetter()) if compile else None
        self._module: TypstModule | None = None
        self._data: TypstDataModule | None = None
        self._generator: Generator | None = None
        self._results: RecordResults | None = None
        self._missing: set[int] = set()
        self._directory = Path()
        self._num_cut_off = 0
        self._counts = DocumentCounts()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        if trainer.world_size > 1:
            raise UserError(
                "predict writes its results from one process.",
                setting="trainer.devices",
                hint="Use `trainer.devices=1`, or `typst-lit generate` with `engine=ray` for several devices.",
            )
        path = Path(self.output or Path(trainer.default_root_dir) / "predictions" / "predictions.json")
        if path.suffix != ".json":
            raise UserError(f"must be a .json file, not {path}.", setting="predict.output")
        self._directory = Path(self.typ_dir) if self.typ_dir else path.parent
        self._module, self._data = typst_module(pl_module), datamodule(trainer)
        settings = provenance(
            trained_model_identity(self._module),
            None,
            self._data.prompt_template,
            self.generation.with_defaults(default_settings(self._module, self._data)),
            self.attempts,
            self.compile,
        )
        if self._data.predict_path:
            check_separate(path, [self._data.predict_path])
        records = self._data.predict_records()
        self._results = RecordResults(path, records, settings, self.overwrite)
        check_documents(self._directory, records, self._results.missing, self.compile, self.overwrite)
        self._missing = set(self._results.missing)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._results is not None
        self._results.start()

    def generate(self, batch: RecordBatch) -> list[GeneratedDocument]:
        """Generates the documents of those records of a batch that have no result yet; their ``index`` is the record's.

        It may be called in the trainer's ``predict`` only, as a module's ``generate_documents``.
        """
        assert self._module is not None and self._data is not None
        if self._generator is None:  # not before: the model is loaded after the results were checked
            self._generator = build_generator(self._module, self._data, self.generation, self.typesetter, self.attempts)
        positions = [position for position, index in enumerate(batch.indices) if index in self._missing]
        records = [InputRecord(batch.records[position], batch.origins[position]) for position in positions]
        with torch.autocast(self._module.device.type, enabled=False):  # which `typst-lit generate` does not use either
            documents = list(self._generator.generate(records))
        return [replace(document, index=batch.indices[positions[document.index]]) for document in documents]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[GeneratedDocument],
        batch_indices: Sequence[int] | None,
        batch: RecordBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert self._results is not None
        for document in sorted(prediction, key=lambda document: document.index):
            write_document(document, self._directory, self.compile, self.overwrite)
            self._results.add(document.index, document.to_json())
            self._num_cut_off += document.finish_reason == "length"
            self._counts.add(document)
            log_document(document)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._results is not None
        count = len(self._results.finish())
        suffixes = ".typ and .pdf" if self.compile else ".typ"
        cut_off = f", {self._num_cut_off} of them cut off at the token limit" if self._num_cut_off else ""
        log.info(
            "%d document%s in %s, as %s files in %s%s.",
            count, "s" * (count != 1), self._results.file.path, suffixes, self._directory, cut_off,
        )  # fmt: skip
        if self._generator is not None:
            temperature = self._generator.settings.temperature
            self._counts.log_summary(self.attempts, temperature, setting="predict.attempts")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._results is not None:
            self._results.close()
