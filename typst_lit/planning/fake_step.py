"""A training step on fake tensors, which have shapes but no memory, and how much memory the real one would hold.

The real decoder, adapter, preparation, loss and optimizer of `TypstModule` run on PyTorch's fake tensors, and every
storage is counted from its allocation until it is freed. So whatever changes in the step changes in the prediction too,
and any architecture, adapter and optimizer is predicted without a formula of its own. Replaced are only the kernels
that need a GPU: those of bitsandbytes (here) and of Liger (`fake_liger`).
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from typst_lit._compat.torch import (
    DataDependentOutputException,
    FakeTensorMode,
    TorchDispatchMode,
    fake_cpu_tensor,
    tensor_leaves,
)
from typst_lit.data.batching import Batch
from typst_lit.errors import UserError
from typst_lit.model.activation_checkpointing import ActivationCheckpointing
from typst_lit.model.adapters import attach_adapter
from typst_lit.model.backbones import NF4_BLOCK_SIZE
from typst_lit.model.forward import last_hidden_states
from typst_lit.model.losses import chunked_cross_entropy
from typst_lit.model.optimizers import OptimizerSetting, build_optimizer
from typst_lit.model.preparation import TrainingSpec, prepare_for_training
from typst_lit.planning.fake_liger import use_fake_liger

CUDA_BLOCK_BYTES = 512  # that the CUDA allocator rounds up to
SCALES_PER_BLOCK = 256  # NF4 scales that share one of 32 bits
PAGED_MIN_ELEMENTS = 100_000  # from where on a paged optimizer's state of a parameter is in the host's memory


@dataclass(frozen=True)
class StepMemory:
    """The peak memory of each phase of a step, in bytes.

    >>> StepMemory(static=100, forward=300, loss=200, backward=400).peak
    400

    Attributes:
        static: weights, adapter and the optimizer's state, between two steps.
        forward: in the decoder's forward pass.
        loss: in the loss.
        backward: in the backward pass and the optimizer's step.
    """

    static: int
    forward: int
    loss: int
    backward: int

    @property
    def peak(self) -> int:
        """The peak of the step."""
        return max(self.forward, self.loss, self.backward)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all live tensors that operators return.

    Attributes:
        current: bytes of the tensors that are alive.
        peak: the maximum of ``current`` since `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._storages: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), -(-storage.nbytes() // CUDA_BLOCK_BYTES) * CUDA_BLOCK_BYTES
        if key not in self._storages:
            self._storages.add(key)
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.current -= size

    def reset_peak(self) -> int:
        """Starts a new phase; returns the peak of the one before."""
        peak, self.peak = self.peak, self.current
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensor_leaves(output):
            self.add(tensor)
        return output


class _DequantizedMatmul(torch.autograd.Function):
    """As in bitsandbytes: dequantizes the weight, multiplies, frees it; and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return inputs @ packed.new_empty(shape, dtype=inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None


class FakeLinear4bit(nn.Linear):
    """A linear layer with as many bytes as bitsandbytes' NF4 layer."""

    def quantize(self, dtype: torch.dtype) -> None:
        """Replaces the weight by one in 4 bits, with double quantization."""
        count = self.weight.numel()
        num_scales = count // NF4_BLOCK_SIZE
        num_bytes = count // 2 + num_scales + 4 * (num_scales // SCALES_PER_BLOCK)
        self.shape = (self.out_features, self.in_features)
        self.dtype = dtype
        self.weight = nn.Parameter(torch.empty(num_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _DequantizedMatmul.apply(input.to(self.dtype), self.weight, self.shape)
        return output if self.bias is None else output + self.bias


def build_meta_model(spec: TrainingSpec, policy: ActivationCheckpointing = "none") -> Any:
    """Returns the model with its adapter on the meta device, prepared for training.

    Raises:
        UserError: when it can't be trained with this policy.
    """
    with torch.device("meta"):
        base: PreTrainedModel = AutoModelForCausalLM.from_config(
            spec.config, dtype=spec.dtype, attn_implementation="sdpa"
        )
        if spec.use_4bit:
            head = base.get_output_embeddings()
            for module in list(base.modules()):
                if type(module) is nn.Linear and module is not head:
                    module.__class__ = FakeLinear4bit
                    module.quantize(spec.dtype)  # type: ignore[operator]
        model = base if spec.adapter is None else attach_adapter(base, spec.adapter)
        if spec.liger:
            use_fake_liger(base)
        prepare_for_training(model, torch.device("meta"), policy)
    return model


def measure_fake_step(
    spec: TrainingSpec,
    policy: ActivationCheckpointing,
    batch_size: int,
    length: int,
    labeled_fraction: float = 1.0,
) -> StepMemory:
    """Returns the memory that a step would hold.

    Args:
        spec: what is trained.
        policy: what the backward pass recomputes. "offload" is measured as "full".
        batch_size: samples of the micro-batch.
        length: tokens of each.
        labeled_fraction: share of the tokens that the loss is computed on.

    >>> from transformers import Qwen3Config
    >>> config = Qwen3Config(vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=1, head_dim=16)
    >>> spec = TrainingSpec(config, adapter=None, use_4bit=False)
    >>> measure_fake_step(spec, "full", 1, 64).peak < measure_fake_step(spec, "full", 2, 64).peak
    True
    """
    policy = "full" if policy == "offload" else policy
    model = build_meta_model(spec, policy)
    mode = FakeTensorMode()
    _make_fake(model, mode)
    model.train()
    optimizer = fake_optimizer(spec.optimizer, model, mode)
    memory = LiveMemory()
    with mode:
        for tensor in (*model.parameters(), *model.buffers()):
            memory.add(tensor)
        batch = _fake_batch(batch_size, length, labeled_fraction)
        phases: list[int] = []
        with memory:
            for _ in range(2):  # from the second step on, the optimizer has its state
                memory.reset_peak()
                phases = [memory.current]
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec.dtype is not torch.float32):
                    hidden = last_hidden_states(model, batch, policy)
                    phases.append(memory.reset_peak())
                    head = model.get_output_embeddings()
                    loss, _ = chunked_cross_entropy(hidden, batch.labels, head, batch.target_positions)
                    del hidden
                phases.append(memory.reset_peak())
                loss.backward()
                del loss
                _step(optimizer)
                optimizer.zero_grad()
                phases.append(memory.reset_peak())
    return StepMemory(*phases)


def _step(optimizer: torch.optim.Optimizer) -> None:
    try:
        optimizer.step()
    except DataDependentOutputException as error:
        raise UserError(
            f"the memory of {type(optimizer).__name__} can't be predicted: its step depends on gradient values.",
            setting="model.optimizer",
            hint="Plan with `model.optimizer=adamw`, and compare what both hold in a short run.",
        ) from error


def fake_optimizer(setting: OptimizerSetting, model: nn.Module, mode: FakeTensorMode) -> torch.optim.Optimizer:
    """Returns the configured optimizer; one of bitsandbytes allocates its state, but does not run its CUDA kernels."""
    is_8bit = setting in ("adamw_8bit", "paged_adamw_8bit")
    with nullcontext() if is_8bit else mode:  # those compute a table when they are created
        optimizer: Any = build_optimizer(setting, model.parameters(), torch.device("cuda"))
    if is_8bit:
        optimizer.update_step = lambda *args: None
        if setting == "paged_adamw_8bit":
            optimizer.get_state_buffer = _paged_state_buffer
    return optimizer


def _paged_state_buffer(parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    on_host = parameter.numel() >= PAGED_MIN_ELEMENTS
    return torch.zeros(0 if on_host else parameter.numel(), dtype=dtype)


def _fake_batch(batch_size: int, length: int, labeled_fraction: float) -> Batch:
    ids = torch.zeros(batch_size, length, dtype=torch.long)
    num_targets = max(1, int(labeled_fraction * batch_size * (length - 1)))
    lengths = [length] * batch_size
    return Batch(ids, ids, lengths, [0] * batch_size, [""] * batch_size, target_positions=torch.arange(num_targets))


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces a model's tensors by fake ones on the CPU; tied ones stay tied."""
    fakes: dict[int, Any] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters("", False, False), *module.named_buffers("", False, False)]:
            if id(tensor) not in fakes:
                fake = fake_cpu_tensor(mode, tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
            setattr(module, name, fakes[id(tensor)])
