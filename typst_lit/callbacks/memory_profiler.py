"""Where the memory goes: the peak of each phase of a training step, and what to lower when memory runs out."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from typst_lit._compat.lightning import optimizer_stepped
from typst_lit.errors import UserError
from typst_lit.model.oom import is_out_of_memory

log = logging.getLogger(__name__)
GIB = 2**30
NUM_FIRST_STEPS = 3  # always measured: the first steps allocate what later ones reuse
PHASES = ("load", "forward", "backward", "optimizer", "validation")


class MemoryMeter:
    """Reads the peak since the last reset, in bytes: of the device's allocator, or of this process's resident memory.

    On Linux the kernel records the resident peak and can reset it; elsewhere `peak` returns the current size.

    Args:
        device: the device to measure; any but a CUDA device means this process.

    Example:
        >>> import torch
        >>> from typst_lit.callbacks import MemoryMeter
        >>> meter = MemoryMeter(torch.device("cpu"))
        >>> meter.reset()
        >>> allocated, reserved = meter.peak()
        >>> allocated > 2**20
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            torch.cuda.init()  # resetting the allocator's statistics before CUDA is initialized raises a RuntimeError

    def reset(self) -> None:
        """Starts a new measurement."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> tuple[int, int]:
        """Returns peak allocated and peak reserved bytes; on the CPU both are the peak resident memory."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            resident = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
            return resident, resident
        resident = psutil.Process().memory_info().rss
        return resident, resident


class MemoryProfiler(Callback):
    """Measures the memory peak of each phase of a step, logs ``memory_peak_gib``, and logs a table at the end.

    When memory runs out, it logs which settings to lower, in order; for that it needs a `TypstModule` and a
    `TypstDataModule`.

    Args:
        every_n_steps: optimizer steps between two measurements; the first steps are always measured.

    Example:
        >>> from typst_lit.callbacks import MemoryProfiler
        >>> MemoryProfiler(every_n_steps=5).peaks
        {}
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise UserError(f"must be 1 or more, not {every_n_steps}.", setting="memory_profiler.every_n_steps")
        self.every_n_steps = every_n_steps
        self.peaks: dict[str, tuple[int, int]] = {}
        self._meter: MemoryMeter | None = None
        self._active = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._meter is None:
            self._meter = MemoryMeter(trainer.strategy.root_device)
            self._meter.reset()

    def _record(self, phase: str) -> None:
        assert self._meter is not None
        allocated, reserved = self._meter.peak()
        previous = self.peaks.get(phase, (0, 0))
        self.peaks[phase] = (max(allocated, previous[0]), max(reserved, previous[1]))
        self._meter.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record("load")

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        assert self._meter is not None
        step = trainer.global_step
        self._active = step < NUM_FIRST_STEPS or step % self.every_n_steps == 0
        if self._active:
            self._meter.reset()

    def on_before_backward(self, *args: Any) -> None:
        if self._active:
            self._record("forward")

    def on_after_backward(self, *args: Any) -> None:
        if self._active:
            self._record("backward")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._active and optimizer_stepped(trainer):
            self._record("optimizer")
            pl_module.log("memory_peak_gib", max(peak for peak, _ in self.peaks.values()) / GIB)

    def on_validation_start(self, *args: Any) -> None:
        assert self._meter is not None
        self._meter.reset()

    def on_validation_end(self, *args: Any) -> None:
        self._record("validation")

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
            # Imported here: the benchmarks use MemoryMeter in processes that measure other packages.
            from typst_lit.callbacks.out_of_memory import advice
            from typst_lit.model.module import TypstModule

            if isinstance(pl_module, TypstModule):
                log.error("%s", advice(trainer, pl_module))
