"""What the benchmarks share: trials in processes of their own, a fit on random tokens, what machine this is."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

GIB = 2**30


def in_a_process(module: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs ``python -m module --trial OPTIONS``, which prints its result as JSON, and returns that.

    A process that the system kills has run out of memory; of another that fails, ``failed`` has the last line.
    """
    call = [sys.executable, "-m", module, "--trial", json.dumps(options)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode in (-9, 137):
        return {"out_of_memory": True}
    return {"failed": (done.stderr.strip().splitlines() or ["nothing was said"])[-1]}


def answered(args: Sequence[str], trial: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Runs the trial that `in_a_process` asks for and prints its result; returns whether one was asked for."""
    if list(args[:1]) != ["--trial"]:
        return False
    print(json.dumps(trial(json.loads(args[1]))))
    return True


def about() -> dict[str, Any]:
    """Returns machine, device and versions, to stand beside figures."""
    versions = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "lightning", "trl"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": versions,
    }


def limit_memory(gib: float | None) -> None:
    """Lets this process have so much of the GPU's memory, as a smaller card would."""
    if gib and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gib * GIB / torch.cuda.get_device_properties(0).total_memory)


def fit_on_random_tokens(options: dict[str, Any], steps: int, callbacks: Sequence[Any] = ()) -> None:
    """Fits a model with the trainer's own module.

    Args:
        options: ``model``, ``batch``, ``length``, ``rank``, ``policy``, ``use_4bit``; and ``limit_gib``, ``packed``
            (documents a row), ``compile``, ``liger``, ``peft_lora`` (PEFT's own forward pass) and ``processes`` if
            they are given. With a limit, the precision is that of a T4.
        steps: optimizer steps, of one batch each.
        callbacks: those of the trainer.
    """
    from lightning.pytorch import Trainer
    from peft import LoraConfig
    from torch.utils.data import DataLoader

    from typst_lit.data.batching import Batch, PackingCollator
    from typst_lit.data.encoding import Example
    from typst_lit.model import module as trained
    from typst_lit.model.module import TypstModule

    if options.get("peft_lora"):
        trained.fuse_lora_forward = lambda model: None
    batch, length, packed = options["batch"], options["length"], options.get("packed") or 0
    generator = torch.Generator().manual_seed(0)

    def made(_: object) -> Batch:
        ids = torch.randint(0, 1000, (batch, length), generator=generator)
        if not packed:
            return Batch(ids, ids.clone(), [length] * batch, [0] * batch, ["random"] * batch)
        documents = ids.reshape(batch * packed, length // packed).tolist()
        return PackingCollator()([Example(row, row, 0, "random") for row in documents])

    rank = options["rank"]
    module = TypstModule(
        options["model"], use_4bit=options["use_4bit"], gradient_checkpointing=options["policy"],
        adapter=LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="attention+mlp"),
        compile=bool(options.get("compile")), liger=bool(options.get("liger")),
    )  # fmt: skip
    processes = options.get("processes", 1)
    small_card = bool(options.get("limit_gib"))
    trainer = Trainer(
        max_steps=steps, accelerator="auto", devices=processes, strategy="ddp" if processes > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=list(callbacks),
        precision=("16-mixed" if small_card else "bf16-mixed") if torch.cuda.is_available() else "32-true",
    )  # fmt: skip
    loader: Any = DataLoader(range(steps), batch_size=1, collate_fn=made)
    trainer.fit(module, loader)
