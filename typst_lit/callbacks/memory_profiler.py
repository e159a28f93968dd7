"""Where the memory goes: the peak of each phase of a step, and what to lower when it does not suffice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from typst_lit.model.oom import is_out_of_memory

log = logging.getLogger(__name__)
GIB = 2**30
PHASES = ("load", "forward", "backward", "optimizer", "validation")


class MemoryMeter:
    """Reads the peak since the last reset, in bytes: of the device's allocator, or of this process's resident memory.

    On Linux the kernel keeps the resident peak and can reset it; elsewhere the current size stands in for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    def reset(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> tuple[int, int]:
        """Returns peak allocated and peak reserved; on the CPU both are the peak resident memory."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            resident = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
            return resident, resident
        resident = psutil.Process().memory_info().rss
        return resident, resident


class MemoryProfiler(Callback):
    """Measures each phase of the training step, logs the peak, prints a table at the end.

    When memory runs out, it prints what to lower, in order, each as the flag to type.

    Args:
        every_n_steps: profile every so many optimizer steps; the first ones are always profiled.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = max(1, every_n_steps)
        self.peaks: dict[str, tuple[int, int]] = {}
        self._meter: MemoryMeter | None = None
        self._active = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._meter is None:
            self._meter = MemoryMeter(trainer.strategy.root_device)
            self._meter.reset()

    def _close(self, phase: str) -> None:
        assert self._meter is not None
        allocated, reserved = self._meter.peak()
        before = self.peaks.get(phase, (0, 0))
        self.peaks[phase] = (max(allocated, before[0]), max(reserved, before[1]))
        self._meter.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("load")

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        assert self._meter is not None
        step = trainer.global_step
        self._active = step < 3 or step % self.every_n_steps == 0
        if self._active:
            self._meter.reset()

    def on_before_backward(self, *args: Any) -> None:
        if self._active:
            self._close("forward")

    def on_after_backward(self, *args: Any) -> None:
        if self._active:
            self._close("backward")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        accumulated = trainer.fit_loop._should_accumulate()
        if self._active and not accumulated:
            self._close("optimizer")
            pl_module.log("memory_peak_gib", max(peak for peak, _ in self.peaks.values()) / GIB)

    def on_validation_start(self, *args: Any) -> None:
        assert self._meter is not None
        self._meter.reset()

    def on_validation_end(self, *args: Any) -> None:
        self._close("validation")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step:
            log.info("%s", self.table())

    def table(self) -> str:
        """Returns the peaks as a table, in GiB."""
        assert self._meter is not None
        lines = ["Memory, peak of each phase (GiB)"]
        if self._meter.on_gpu:
            name = torch.cuda.get_device_name(self._meter.device)
            lines += [f"{name}", f"{'phase':<12}{'allocated':>12}{'reserved':>12}"]
        else:
            lines.append(f"{'phase':<12}{'resident':>12}")
        for phase in PHASES:
            if phase in self.peaks:
                sizes = self.peaks[phase] if self._meter.on_gpu else self.peaks[phase][:1]
                lines.append(f"{phase:<12}" + "".join(f"{size / GIB:>12.2f}" for size in sizes))
        return "\n".join(lines)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and is_out_of_memory(exception):
            if self._meter is not None and self.peaks:
                log.error("%s", self.table())
            log.error("%s", advice(trainer, pl_module))


def advice(trainer: Any, module: Any) -> str:
    """Returns what to lower when memory runs out, the most useful and least harmful first, each as its flags."""
    data, adapter = trainer.datamodule, None if module.adapter_path else module.adapter
    if trainer.state.fn != "fit":
        return f"Out of memory. Lower --data.eval_batch_size (now {getattr(data, 'eval_batch_size', 1)}) to 1" + (
            ", then --model.generation.max_tokens." if trainer.state.fn == "predict" else ", then --data.max_length."
        )
    batch, accumulation = getattr(data, "batch_size", 1), trainer.accumulate_grad_batches
    length, rank = getattr(data, "length_limit", None) or 0, getattr(adapter, "r", 0)
    few = {"q_proj", "v_proj"}
    options: list[tuple[Callable[[], bool], str, str]] = [
        (
            lambda: batch > 1,
            f"--data.batch_size 1 --trainer.accumulate_grad_batches {batch * accumulation}",
            "the same gradient, one sample at a time",
        ),
        (
            lambda: module.gradient_checkpointing == "none",
            "--model.gradient_checkpointing true",
            "activations recomputed",
        ),
        (
            lambda: not module.use_4bit and (adapter is not None or module.adapter_path is not None),
            "--model.use_4bit true",
            "base weights a quarter the size",
        ),
        (
            lambda: length > 512,
            f"--data.max_length {max(512, length // 2)} --data.overlength drop",
            "leaves longer samples out: see `typst-lit lengths` for how many",
        ),
        (
            lambda: rank > 4,
            f"--model.adapter.r {max(4, rank // 2)} --model.adapter.lora_alpha {max(8, rank)}",
            "fewer trained weights",
        ),
        (
            lambda: rank > 0 and set(getattr(adapter, "target_modules", None) or ()) != few,
            "--model.adapter.target_modules '[q_proj, v_proj]'",
            "fewer adapted layers",
        ),
    ]
    useful = [(flags, why) for applies, flags, why in options if applies()]
    lines = [f"  {number}. {flags}   ({why})" for number, (flags, why) in enumerate(useful, start=1)]
    if not lines:
        return "Out of memory, with everything at its smallest already: this model needs a larger device."
    return "Out of memory. Lower, in this order, until it fits:\n" + "\n".join(lines)
