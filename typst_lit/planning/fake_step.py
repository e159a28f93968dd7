"""A training step on tensors that have shapes but no memory, and what it would have held.

The real decoder, adapter, loss and optimizer of `TypstModule` run on PyTorch's fake tensors, and every storage that
comes into being is counted until it goes. So whatever changes in the step changes in the prediction too, and any
architecture and any adapter that PEFT knows is predicted without a formula of its own.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from typst_lit.model.activation_checkpointing import ActivationCheckpointing, enable_activation_checkpointing
from typst_lit.model.adapters import attach_adapter
from typst_lit.model.attention import use_packed_attention
from typst_lit.model.backbones import NF4_BLOCK
from typst_lit.model.kernels import fuse_lora_forward
from typst_lit.model.losses import linear_cross_entropy

BLOCK = 512  # bytes that the CUDA allocator rounds up to
DOUBLE_BLOCK = 256  # scales that share one of 32 bits


@dataclass(frozen=True)
class Peaks:
    """Most bytes held at a time, by phase.

    Attributes:
        static: weights, adapter and the optimizer's state, between two steps.
        forward: at the end of the decoder's forward pass.
        loss: in the loss.
        backward: in the backward pass and the optimizer's step.
    """

    static: int
    forward: int
    loss: int
    backward: int

    @property
    def most(self) -> int:
        """The peak of the step."""
        return max(self.forward, self.loss, self.backward)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and keeps the most there were since `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), -(-storage.nbytes() // BLOCK) * BLOCK
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def reset(self) -> None:
        """Begins a new phase."""
        self.most = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return made


class _Dequantised(torch.autograd.Function):
    """What bitsandbytes does in training: unpack the weight, multiply, forget it; and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return inputs @ packed.new_empty(shape, dtype=inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=gradient.dtype), None, None


class FourBitLinear(nn.Linear):
    """A linear layer with as many bytes as bitsandbytes' NF4 layer has."""

    def pack(self, dtype: torch.dtype) -> None:
        """Replaces the weight by one in 4 bits."""
        count = self.weight.numel()
        scales = count // NF4_BLOCK
        size = count // 2 + scales + 4 * (scales // DOUBLE_BLOCK)
        self.shape = (self.out_features, self.in_features)
        self.dtype = dtype
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Dequantised.apply(input.to(self.dtype), self.weight, self.shape)
        return output if self.bias is None else output + self.bias


def meta_model(
    config: PretrainedConfig, adapter: PeftConfig | None, use_4bit: bool, dtype: torch.dtype
) -> tuple[PreTrainedModel, nn.Module]:
    """Returns a base model of this architecture, and the same with its adapter, on the meta device."""
    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        head = base.get_output_embeddings()
        if use_4bit:
            for module in base.modules():
                if type(module) is nn.Linear and module is not head:
                    module.__class__ = FourBitLinear
                    packed: Any = module
                    packed.pack(dtype)
        use_packed_attention(base)
        whole = base if adapter is None else attach_adapter(base, adapter)
        fuse_lora_forward(whole)
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return base, whole


def simulated_step(
    config: PretrainedConfig,
    adapter: PeftConfig | None,
    use_4bit: bool,
    policy: ActivationCheckpointing,
    rows: int,
    length: int,
    labelled: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> Peaks:
    """Returns what a step would hold.

    Args:
        config: of the base model.
        adapter: its adapter; None to train all weights.
        use_4bit: whether its linear layers are in 4 bits.
        policy: what the backward pass computes again.
        rows: samples of a micro-batch.
        length: tokens of each.
        labelled: share of the tokens that the loss is taken on.
        dtype: that of the frozen weights and of mixed precision.
    """
    base, whole = meta_model(config, adapter, use_4bit, dtype)
    mode = FakeTensorMode()
    _make_fake(whole, mode)
    whole.train()
    mixed = dtype is not torch.float32
    memory = LiveMemory()
    with mode:
        enable_activation_checkpointing(base, policy)
        for parameter in whole.parameters():
            memory.add(parameter)
        for buffer in whole.buffers():
            memory.add(buffer)
        trained = [parameter for parameter in whole.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        ids = torch.zeros(rows, length, dtype=torch.long)
        count = max(1, int(labelled * rows * (length - 1)))
        phases: list[int] = []
        with memory:
            for _ in range(2):  # from the second step on, the optimizer has its state
                phases = [memory.now]
                memory.reset()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                    hidden = base.get_decoder()(input_ids=ids, use_cache=False)[0]
                    phases.append(memory.most)
                    memory.reset()
                    some = hidden[:, :-1].reshape(-1, hidden.shape[-1])[:count]
                    del hidden
                    loss = linear_cross_entropy(some, ids.reshape(-1)[:count], base.get_output_embeddings())
                    del some
                phases.append(memory.most)
                memory.reset()
                loss.backward()
                del loss
                optimizer.step()
                optimizer.zero_grad()
                phases.append(memory.most)
    return Peaks(*phases)


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Turns a model's tensors into fake ones on the CPU, tied ones into one."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                store[name] = made[id(tensor)]


def trained_parameters(model: nn.Module) -> int:
    """Returns how many weights are trained."""
    module = model.get_base_model() if isinstance(model, PeftModel) else model
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
