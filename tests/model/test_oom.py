"""Out of memory: batches that are split have the same loss and the same gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from typst_lit.data.batching import Batch, Collator, PackingCollator, split_batch
from typst_lit.data.encoding import IGNORE_INDEX, Example
from typst_lit.model.module import TypstModule
from typst_lit.model.oom import is_out_of_memory, run_with_oom_fallback, split_batch_loss


def examples(lengths: list[int]) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    result = []
    for number, length in enumerate(lengths):
        ids = torch.randint(1, 500, (length,), generator=generator).tolist()
        result.append(Example(ids, [IGNORE_INDEX] * 3 + ids[3:], 3, f"record {number}"))
    return result


def build_batch(lengths: list[int], packed: bool) -> Batch:
    collate: Any = PackingCollator() if packed else Collator(0, 100)
    return collate(examples(lengths))


@pytest.mark.parametrize("packed", [False, True])
def test_split_batches_contain_the_batch(packed) -> None:
    batch = build_batch([30, 8, 9, 10, 11], packed)
    for num_splits in (1, 2, 3, 5, 9):
        parts = split_batch(batch, num_splits)
        assert len(parts) <= min(num_splits, 5) and (num_splits in (2, 3)) <= (len(parts) > 1)
        assert [origin for part in parts for origin in part.origins] == batch.origins
        assert [length for part in parts for length in part.lengths] == batch.lengths
        assert sum(int((part.labels != IGNORE_INDEX).sum()) for part in parts) == int(
            (batch.labels != IGNORE_INDEX).sum()
        )
        for part in parts:
            if packed:
                offsets = part.packed_sequences.offsets
                assert offsets[0] == 0 and offsets[-1] == part.input_ids.shape[1]
                assert part.packed_sequences.cu_seqlens.tolist() == offsets
                assert part.packed_sequences.max_seqlen == max(part.lengths)
            else:
                assert part.input_ids.shape[0] == len(part.lengths)
                assert part.input_ids.shape[1] == -(-max(part.lengths) // 8) * 8
    if packed:  # by tokens, not by documents
        assert [sum(part.lengths) for part in split_batch(batch, 2)] == [30, 38]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_splits", [1, 2, 4])
def test_loss_and_gradients_are_those_of_the_unsplit_batch(tiny_model, packed, num_splits) -> None:
    seed_everything(0)
    module = TypstModule(str(tiny_model), use_4bit=False)
    module.adapter.lora_dropout = 0.0
    module.configure_model()
    from typst_lit.model.attention import use_packed_attention

    use_packed_attention(module.model.get_base_model())
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:  # LoRA's B starts at 0, which would leave A without a gradient
        parameter.data = torch.randn_like(parameter) * 0.1
    batch = build_batch([20, 7, 13, 40], packed)
    plain, count = module.summed_loss(batch)
    (plain / 8).backward()
    expected = [parameter.grad.clone() for parameter in parameters]
    module.zero_grad()
    loss, same_count = split_batch_loss(module.summed_loss, batch, num_splits, parameters, torch.tensor(0.25))
    assert all(parameter.grad is None for parameter in parameters)
    (loss / 8).backward()
    assert count == same_count
    torch.testing.assert_close(loss, plain)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_out_of_memory_errors_are_recognized() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55)
    assert is_out_of_memory(raised.value)
    wrapped = ValueError("something else")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert is_out_of_memory(wrapped) and not is_out_of_memory(ValueError("a shape"))


def test_a_call_is_retried_while_memory_can_be_reduced() -> None:
    limits = [4, 2, 1]

    def compute() -> int:
        if limits[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return limits[0]

    assert run_with_oom_fallback(compute, lambda: bool(limits.pop(0))) == 1
    with pytest.raises(torch.OutOfMemoryError):
        limits[0] = 2
        run_with_oom_fallback(compute, lambda: False)
    with pytest.raises(ZeroDivisionError):
        run_with_oom_fallback(lambda: 1 // 0, lambda: True)


def test_out_of_memory_is_recognized_through_causes() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    wrapped = ValueError("step failed")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(ValueError("something else"))
