from __future__ import annotations

import mmap
import sys

import pytest
import torch

from typst_lit.callbacks import MemoryMeter, MemoryProfiler
from typst_lit.errors import UserError


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak is read on Linux")
def test_the_meter_sees_a_peak_that_has_passed() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    meter.reset()
    before = meter.peak()[0]
    block = mmap.mmap(-1, 256 << 20)  # not a tensor, which may get memory that this process already has
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    block.close()
    assert meter.peak()[0] - before > 200 * 2**20
    meter.reset()
    assert meter.peak()[0] - before < 100 * 2**20


def test_a_meter_of_a_gpu_initializes_cuda_first(monkeypatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    MemoryMeter(torch.device("cuda", 0)).reset()
    assert calls == ["init", "reset"]


def test_an_interval_below_one_is_rejected() -> None:
    with pytest.raises(UserError, match=r"memory_profiler\.every_n_steps"):
        MemoryProfiler(every_n_steps=0)
