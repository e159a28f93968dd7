from __future__ import annotations

import json
import sys

import pytest
import torch

from typst_lit.callbacks.learning_curve import diagnose
from typst_lit.callbacks.memory_profiler import MemoryMeter
from typst_lit.inference.outputs import ResultFile
from typst_lit.model.oom import is_out_of_memory


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], "does not show a trend"),
        ([2.0, 1.5, 1.2], "still falling"),
        ([2.0, 1.0, 1.3, 1.4], "risen by 0.4000 since epoch 2.00"),
        ([2.0, 1.001, 1.0], "levelled off"),
    ],
)
def test_the_diagnosis_of_a_curve_is_in_plain_language(values, words) -> None:
    text = diagnose([(float(epoch), value, None) for epoch, value in enumerate(values, start=1)])
    assert words in text and all(f"{value:.4f}" in text for value in values)


def test_out_of_memory_is_recognised_through_causes() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    wrapped = ValueError("step failed")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(ValueError("something else"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak is read on Linux")
def test_the_meter_sees_a_peak_that_has_passed() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    meter.reset()
    before = meter.peak()[0]
    block = torch.ones(64 << 20)  # 256 MiB
    del block
    assert meter.peak()[0] - before > 200 * 2**20
    meter.reset()
    assert meter.peak()[0] - before < 100 * 2**20


def test_a_growing_list_is_json_after_every_write_and_survives_a_cut(tmp_path) -> None:
    file = ResultFile(tmp_path / "list.json")
    assert file.read() == []
    file.write([])
    items = [{"text": "ünïcode ] } , \\n"}, {"text": "x" * 5000}, {"n": [1, 2]}]
    for count, item in enumerate(items, start=1):
        file.append([item])
        assert json.loads(file.path.read_text("utf-8")) == items[:count]
    whole = file.path.read_bytes()
    for cut in range(1, len(whole), 397):
        file.path.write_bytes(whole[:cut])
        kept = file.read()
        assert kept == items[: len(kept)]
    file.path.write_bytes(whole[:-10])
    assert file.read() == items[:2]
    file.write(file.read())
    file.append([items[2]])
    assert json.loads(file.path.read_text("utf-8")) == items
