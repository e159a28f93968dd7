"""Generated documents on disk, as each is done, in the order of the records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from typst_lit.data.batching import PromptBatch
from typst_lit.errors import UserError
from typst_lit.inference.outputs import ResultFile, file_name
from typst_lit.inference.request import Completion
from typst_lit.model.adapters import adapter_directory, adapter_key
from typst_lit.typesetting.repairs import repair
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)


class PredictionWriter(BasePredictionWriter):
    """Writes ``[{"input": {...}, "generated_output": "..."}]`` and a ``.typ`` file a document.

    The list is valid JSON after every batch. A prediction that was interrupted goes on after the last whole result
    when the same command is given again.

    With ``compile``, each result says whether it ``compiled``, what was mended for that (``repairs``), what the
    compiler said (``diagnostics``) and how many ``pages`` there are, and the PDF lies beside the ``.typ`` file.

    Args:
        output: the JSON file; by default ``predictions/predictions.json`` in the run directory.
        typ_dir: folder of the ``.typ`` files; by default the one that ``output`` lies in.
        overwrite: start anew where results are there already.
        compile: make PDFs, too.
        typesetter: what compiles.
    """

    def __init__(
        self,
        output: str | None = None,
        typ_dir: str | None = None,
        overwrite: bool = False,
        compile: bool = False,
        typesetter: Typesetter | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.compile = compile
        self.typesetter = typesetter or Typesetter()
        self.output = output
        self.typ_dir = typ_dir
        self.overwrite = overwrite
        self._file: ResultFile | None = None
        self._directory = Path()
        self._cut_off = 0
        self._compiled = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        if trainer.world_size > 1:
            raise UserError(
                "predict writes its results in order from one process: use --trainer.devices 1. For several devices "
                "there is `typst-lit generate --engine ray`."
            )
        path = Path(self.output or Path(trainer.default_root_dir) / "predictions" / "predictions.json")
        if path.suffix != ".json":
            raise UserError(f"predict.output must be a .json file, not {path}.")
        self._directory = Path(self.typ_dir) if self.typ_dir else path.parent
        self._directory.mkdir(parents=True, exist_ok=True)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        records = data.predict_records()
        self._file = ResultFile(path)
        done = self._done_before(path, records, {**_making(pl_module, data), "compile": self.compile})
        data.predict_start = done
        if done:
            log.info("%d of %d documents are there already; going on after them.", done, len(records))

    def _done_before(self, path: Path, records: list[dict[str, Any]], making: dict[str, Any]) -> int:
        """Returns how many results the file holds of these records, made the same way, and readies it for the rest."""
        assert self._file is not None
        way_out = "Name another --predict.output, or add --predict.overwrite true."
        results = [] if self.overwrite else self._file.resume(making, way_out)
        if len(results) > len(records) or any(
            result.get("input") != record for result, record in zip(results, records, strict=False)
        ):
            raise UserError(f"{path}: holds results of other records. {way_out}")
        self._file.start(results, making)
        return len(results)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Completion],
        batch_indices: Sequence[int] | None,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert self._file is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        results = []
        for index, completion in zip(batch.indices, prediction, strict=True):
            result: dict[str, Any] = {"input": data.record(index), "generated_output": completion.text}
            if completion.finish_reason == "length":
                result["finish_reason"] = "length"
                self._cut_off += 1
                log.warning(
                    "Record %d: the document was cut off at %d tokens. Raise --model.generation.max_tokens.",
                    index, completion.tokens,
                )  # fmt: skip
            results.append(result)
        files = [self._directory / file_name(i, r["input"]) for i, r in zip(batch.indices, results, strict=True)]
        for file, result in zip(files, results, strict=True):
            file.write_text(result["generated_output"], "utf-8")
        if self.compile:
            self._compile(files, results)
        self._file.append(results)

    def _compile(self, files: Sequence[Path], results: Sequence[dict[str, Any]]) -> None:
        """Makes the PDFs of a batch and says in the results what came of it."""
        compiled = self.typesetter.compile_many([result["generated_output"] for result in results])
        for file, result, made in zip(files, results, compiled, strict=True):
            made, repairs = repair(made, self.typesetter, cut_off="finish_reason" in result)
            made.save_pdf(file.with_suffix(".pdf"))
            file.write_text(made.source, "utf-8")
            result["generated_output"] = made.source
            result["repairs"] = [str(repair) for repair in repairs]
            result["compiled"] = made.ok
            result["diagnostics"] = [each._asdict() for each in made.diagnostics]
            result["pages"] = made.page_count
            if made.missing_assets:
                result["missing_assets"] = list(made.missing_assets)
            self._compiled += made.ok
            if not made.ok:
                log.warning("%s does not compile: %s", file, made.error)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._file is not None
        cut = f", {self._cut_off} of them cut off at the token limit" if self._cut_off else ""
        made = ".typ and .pdf" if self.compile else ".typ"
        log.info(
            "Documents: %d in %s, as %s files in %s%s.",
            self._file.count, self._file.path, made, self._directory, cut,
        )  # fmt: skip
        if self.compile:
            log.info("%d of the documents made now compile.", self._compiled)


def _making(pl_module: Any, data: Any) -> dict[str, Any]:
    """Returns what the results depend on, beside the records."""
    adapter = pl_module.adapter_path
    return {
        "base_model": pl_module.base_model,
        "adapter": adapter_key(adapter_directory(adapter)) if adapter else None,
        "use_4bit": pl_module.use_4bit,
        "template": data.prompt_template.describe(),
        **{f"generation.{key}": value for key, value in vars(pl_module.generation).items()},
    }
