"""What to lower when memory runs out."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer

from typst_lit.callbacks.base import datamodule, typst_module
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.model.module import TypstModule


def advice(trainer: Trainer, pl_module: LightningModule) -> str:
    """Returns which settings to lower when memory runs out, the most effective and least harmful first."""
    module, data = typst_module(pl_module), datamodule(trainer)
    if trainer.state.fn != "fit":
        other = "generation.max_tokens" if trainer.state.fn == "predict" else "data.max_length"
        return f"Out of memory. Lower `data.eval_batch_size` (now {data.eval_batch_size}) to 1, then `{other}`."
    suggestions = _suggestions(trainer, module, data)
    if not suggestions:
        return "Out of memory, with every setting at its lowest already: this model needs a larger device."
    lines = [f"  {number}. {settings}   ({effect})" for number, (settings, effect) in enumerate(suggestions, start=1)]
    return "Out of memory. Lower, in this order, until it fits:\n" + "\n".join(lines)


def _suggestions(trainer: Trainer, module: TypstModule, data: TypstDataModule) -> list[tuple[str, str]]:
    """Returns the settings that can still be lowered, and the effect of each."""
    adapter = None if module.adapter_path else module.adapter
    length, rank = data.length_limit or 0, getattr(adapter, "r", 0)
    attention_only = set(getattr(adapter, "target_modules", None) or ()) == {"q_proj", "v_proj"}
    has_adapter = adapter is not None or module.adapter_path is not None
    samples = data.batch_size * trainer.accumulate_grad_batches
    options = [
        (
            data.batch_size > 1,
            f"`data.batch_size=1` `trainer.accumulate_grad_batches={samples}`",
            "the same gradient, from one sample per micro-batch",
        ),
        (
            module.gradient_checkpointing == "none",
            "`model.gradient_checkpointing=true`",
            "activations are recomputed",
        ),
        (
            not module.use_4bit and has_adapter,
            "`model.use_4bit=true`",
            "base weights take a quarter of the memory",
        ),
        (
            length > 512,
            f"`data.max_length={max(512, length // 2)}` `data.overlength=drop`",
            "leaves longer samples out: `typst-lit lengths` shows how many",
        ),
        (
            rank > 4,
            f"`model.adapter.r={max(4, rank // 2)}` `model.adapter.lora_alpha={max(8, rank)}`",
            "fewer trained weights",
        ),
        (
            rank > 0 and not attention_only,
            "`model.adapter.target_modules=[q_proj, v_proj]`",
            "fewer adapted layers",
        ),
    ]
    return [(settings, effect) for applies, settings, effect in options if applies]
