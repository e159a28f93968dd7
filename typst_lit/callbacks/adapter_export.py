"""The product of a run: the best and the last adapter, each a directory that any PEFT can load."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from typst_lit.callbacks.base import datamodule, typst_module
from typst_lit.inference.settings import GenerationSettings
from typst_lit.model.adapters import has_adapter
from typst_lit.model.locations import BUILT_IN, AdapterMetadata
from typst_lit.model.module import TypstModule
from typst_lit.model.saving import save_weights
from typst_lit.version import __version__

log = logging.getLogger(__name__)


class AdapterExport(Callback):
    """Saves ``adapter/best`` (lowest ``monitor``) and ``adapter/last`` in the run directory, after every validation.

    Each directory holds the weights in safetensors, the tokenizer, a model card, the prompt template and what else is
    known of the training (`AdapterMetadata`). A run that trains all weights saves the model in ``model/best`` and
    ``model/last`` instead.

    It needs a `TypstModule` and a `TypstDataModule`.

    Args:
        monitor: the logged value that decides which adapter is the best; lower is better.
        generation: how to sample; what it gives is saved, for generation with the adapter.

    Example:
        >>> from typst_lit.callbacks import AdapterExport
        >>> AdapterExport().monitor
        'val_loss'
    """

    def __init__(self, monitor: str = "val_loss", generation: GenerationSettings | None = None) -> None:
        self.monitor = monitor
        self.generation = generation or GenerationSettings()
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        self._save(trainer, pl_module, "last", value)
        if value is not None and math.isfinite(value) and (self.best is None or float(value) < self.best):
            self.best = float(value)
            self._save(trainer, pl_module, "best", value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            return
        self._save(trainer, pl_module, "last", trainer.callback_metrics.get(self.monitor))
        # Nothing was validated, or the best was saved in another run directory: the last is the best here.
        directory = self.directory(trainer, pl_module)
        if not any((directory / "best").glob("*.safetensors")):
            self._save(trainer, pl_module, "best", None)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            best = "last (nothing was validated)"
            if self.best is not None:
                best = f"best ({self.monitor} {self.best:.4f}) and last"
            log.info("Saved in %s: %s", directory, best)

    @staticmethod
    def directory(trainer: Trainer, pl_module: LightningModule) -> Path:
        """Returns the directory of ``best`` and ``last``."""
        name = "adapter" if has_adapter(typst_module(pl_module).model) else "model"
        return Path(trainer.default_root_dir) / name

    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str, value: Tensor | None) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        module, data = typst_module(pl_module), datamodule(trainer)
        epochs: Any = trainer.fit_loop.epoch_progress.current
        details = {
            "base model": module.base_model,
            "revision": module.revision or "not pinned",
            "base weights in training": "4-bit NF4, double quantization" if module.use_4bit else "not quantized",
            "steps": trainer.global_step,
            "epochs": epochs.started,
            "learning rate": module.learning_rate.peak,
            "batch size": f"{data.batch_size} x {trainer.accumulate_grad_batches} x {trainer.world_size}",
            "max length": data.length_limit,
            self.monitor: "not measured" if value is None else f"{float(value):.4f}",
        }
        card = model_card(module, name, details)
        target = self.directory(trainer, pl_module) / name
        generation = {**module.adapter_metadata.generation, **self.generation.explicit_values}
        metadata = AdapterMetadata(generation, data.max_completion_tokens, module.contract)
        save_weights(module.model, target, module.tokenizer, data.prompt_template, card, metadata)


def model_card(module: TypstModule, name: str, details: Mapping[str, Any]) -> str:
    """Returns the text of a model card.

    Args:
        module: what was trained.
        name: the directory's name.
        details: rows of the card's table.
    """
    adapter = has_adapter(module.model)
    header = {"base_model": module.base_model, "library_name": "peft" if adapter else "transformers"}
    front_matter = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    rows = "\n".join(f"| {key} | {value} |" for key, value in details.items())
    flag, argument = ("--model", f'"{name}"') if adapter else ("--base-model", f'base_model="{name}"')
    return (
        f"---\n{front_matter}\npipeline_tag: text-generation\ntags: [typst]\n---\n\n"
        f"# Typst writer on {Path(module.base_model).name}\n\n"
        f"Turns records into Typst source. Trained with typst_lit {__version__}.\n\n| | |\n|---|---|\n{rows}\n\n"
        f"## Use\n\n```bash\ntypst-lit generate {flag} {name} --input records.json\n```\n\n"
        f"```python\nfrom typst_lit import Generator\n\ngenerator = Generator.load({argument})\n"
        f"print(generator.generate_one(record).source)  # a dict of the record's fields\n```\n\n"
        f"{_transformers_example(module, name)}The prompt template of its training is in `typst_lit.json`.\n"
    )


def _transformers_example(module: TypstModule, name: str) -> str:
    """Returns how to load it without this package; nothing for a base model that only this package has."""
    load = "AutoModelForCausalLM.from_pretrained"
    if not has_adapter(module.model):
        lines = ["from transformers import AutoModelForCausalLM", "", f'model = {load}("{name}")']
    elif module.base_model in BUILT_IN:
        return ""
    else:
        lines = [
            "from peft import PeftModel", "from transformers import AutoModelForCausalLM", "",
            f'model = {load}("{module.base_model}")', f'model = PeftModel.from_pretrained(model, "{name}")',
        ]  # fmt: skip
    return "Without this package:\n\n```python\n" + "\n".join(lines) + "\n```\n\n"
