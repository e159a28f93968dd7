"""The product of a run: a PEFT directory that any PEFT can load."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from peft import PeftModel

from typst_lit.callbacks.resumable_checkpoint import ResumableCheckpoint
from typst_lit.model.adapters import save_weights
from typst_lit.model.backbones import BUILT_IN
from typst_lit.version import __version__

log = logging.getLogger(__name__)


class AdapterExport(ResumableCheckpoint):
    """Saves ``adapter/best`` (lowest val_loss) and ``adapter/last`` in the run directory, after every validation.

    Each holds the weights in safetensors with the tokenizer, the prompt template and a model card. A run that trains
    all weights saves the whole model in ``model/`` instead. Beside them it keeps checkpoints that the run can go on
    from.

    Args:
        monitor: the logged value that decides what is best; lower is better.
        every_n_steps: optimizer steps from one resumable checkpoint to the next within an epoch.
        every_minutes: save earlier where so many steps take longer than this.
        keep: how many of the newest checkpoints to keep.
        copy_to: a second directory for the newest checkpoints, on a disk that outlives the machine (Colab: Drive).
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        every_n_steps: int = 20,
        every_minutes: float = 2.0,
        keep: int = 2,
        copy_to: str | None = None,
    ) -> None:
        super().__init__(every_n_steps, every_minutes, keep, copy_to)
        self.monitor = monitor
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.at_once = None  # all other callbacks are done, and the files written from here on shall be whole
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        self._save(trainer, pl_module, "last", value)
        if value is not None and math.isfinite(value) and (self.best is None or float(value) < self.best):
            self.best = float(value)
            self._save(trainer, pl_module, "best", value)
        super().on_validation_end(trainer, pl_module)  # afterwards: it keeps what is best so far

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            return
        self._save(trainer, pl_module, "last", trainer.callback_metrics.get(self.monitor))
        # Nothing was validated, or the best was saved in another run's directory: the last are the best there are.
        if not (self.directory(trainer, pl_module) / "best").is_dir():
            self._save(trainer, pl_module, "best", None)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("Saved in %s: %s", self.directory(trainer, pl_module), _told(self.monitor, self.best))

    @staticmethod
    def directory(trainer: Trainer, pl_module: LightningModule) -> Path:
        """Returns the folder that holds ``best`` and ``last``."""
        kind = "adapter" if isinstance(pl_module.model, PeftModel) else "model"
        return Path(trainer.default_root_dir) / kind

    def _save(self, trainer: Trainer, pl_module: Any, name: str, value: Any) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        epochs: Any = trainer.fit_loop.epoch_progress.current
        facts = {
            "base model": pl_module.base_model,
            "revision": pl_module.revision or "not pinned",
            "base weights in training": "4-bit NF4, double quantisation" if pl_module.use_4bit else "not quantised",
            "steps": trainer.global_step,
            "epochs": epochs.started,
            "learning rate": pl_module.learning_rate.peak,
            "batch size": f"{data.batch_size} x {trainer.accumulate_grad_batches} x {trainer.world_size}",
            "max length": data.length_limit,
            self.monitor: "not measured" if value is None else f"{float(value):.4f}",
        }
        target = self.directory(trainer, pl_module) / name
        card = _card(pl_module, target, facts)
        save_weights(pl_module.model, target, pl_module.tokenizer, data.prompt_template, card)


def _told(monitor: str, best: float | None) -> str:
    return "last (nothing was validated)" if best is None else f"best ({monitor} {best:.4f}) and last"


def _card(pl_module: Any, target: Path, facts: dict[str, Any]) -> str:
    adapter = isinstance(pl_module.model, PeftModel)
    header = {"base_model": pl_module.base_model, "library_name": "peft" if adapter else "transformers"}
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    flag = "--model.adapter_path" if adapter else "--model.base_model"
    base = f'"{pl_module.base_model}"'
    imported = ""
    if pl_module.base_model in BUILT_IN:
        base, imported = f"path_or_name({base})", "from typst_lit.model.backbones import path_or_name\n\n"
    use = imported + (
        f"model = AutoModelForCausalLM.from_pretrained({base})\n"
        f'model = PeftModel.from_pretrained(model, "{target.name}")'
        if adapter
        else f'model = AutoModelForCausalLM.from_pretrained("{target.name}")'
    )
    return (
        f"---\n{front}\npipeline_tag: text-generation\ntags: [typst]\n---\n\n"
        f"# Typst writer on {Path(pl_module.base_model).name}\n\n"
        f"Turns records into Typst source. Made with typst_lit {__version__}.\n\n| | |\n|---|---|\n{rows}\n\n"
        f"## Use\n\n```bash\ntypst-lit predict --data.predict_path records.json {flag} {target.name}\n```\n\n"
        f"```python\n{use}\n```\n\nThe prompt template it was trained with is in `typst_lit.json`.\n"
    )
