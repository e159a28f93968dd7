"""Peak memory and step time for every batch size and policy, and the best of those that fit a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from typst_lit.errors import UserError
from typst_lit.model.activation_checkpointing import ActivationCheckpointing
from typst_lit.model.preparation import TrainingSpec
from typst_lit.planning.fake_step import StepMemory, build_meta_model, measure_fake_step

GIB = 2**30
POLICIES: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")  # the fastest first
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
PROBE_LENGTHS = (2048, 4096)  # tokens of the fake steps; each phase's peak is affine in them
# The work of a step in forward passes: one for the forward pass, one for the gradients of the activations (the frozen
# weights have none), one for recomputing. Attention is a tenth to a third of it in long documents.
PASSES = {"none": 2.0, "selective": 2.9, "full": 3.0, "offload": 3.0}


class Device(NamedTuple):
    """A device to plan for.

    >>> DEVICES["t4"].bf16
    False

    Attributes:
        gib: memory that a process can use for tensors: without its CUDA context and the allocator's gaps.
        tflops: what matrix products in 16 bits reach, not what the data sheet says; None when it is not known.
        bf16: whether it computes in bfloat16.
    """

    gib: float
    tflops: float | None = None
    bf16: bool = True


DEVICES = {
    "t4": Device(13.6, 24, bf16=False),
    "v100": Device(14.6, 80, bf16=False),
    "l4": Device(21.0, 60),
    "a10": Device(21.0, 70),
    "rtx4090": Device(22.5, 150),
    "a100-40": Device(37.5, 250),
    "a100": Device(76.0, 250),
    "h100": Device(76.0, 650),
    "h200": Device(135.0, 790),
}


class PlanOption(NamedTuple):
    """One way to run a step, and what it takes; for an example see `best_option`.

    Attributes:
        policy: what the backward pass recomputes.
        batch_size: samples per micro-batch.
        peak_bytes: the predicted peak of the step.
        seconds: of a micro-batch; None when it is not known.
    """

    policy: ActivationCheckpointing
    batch_size: int
    peak_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class FitSpec:
    """What is fitted, on which data; for an example see `Planner`.

    Attributes:
        training: what is trained.
        max_length: tokens of the longest sample.
        mean_length: mean tokens of a sample.
        labeled_fraction: share of the tokens that the loss is computed on.
    """

    training: TrainingSpec
    max_length: int
    mean_length: float
    labeled_fraction: float = 1.0


class Planner:
    """Predicts the peak memory and time of a fit's steps, from two fake steps per policy.

    >>> from transformers import Qwen3Config
    >>> config = Qwen3Config(vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=1, head_dim=16)
    >>> planner = Planner(FitSpec(TrainingSpec(config, adapter=None, use_4bit=False), max_length=512, mean_length=300))
    >>> planner.peak_bytes("full", 512) < planner.peak_bytes("full", 1024)
    True

    Args:
        spec: what is fitted.
    """

    def __init__(self, spec: FitSpec) -> None:
        self.spec = spec
        self._probes: dict[str, tuple[StepMemory, StepMemory]] = {}

    def peak_bytes(self, policy: ActivationCheckpointing, num_tokens: int) -> int:
        """Returns the peak memory of a step on ``num_tokens`` tokens."""
        if policy not in self._probes:
            short, long = (
                measure_fake_step(self.spec.training, policy, 1, length, self.spec.labeled_fraction)
                for length in PROBE_LENGTHS
            )
            self._probes[policy] = short, long
        short, long = self._probes[policy]
        position = (num_tokens - PROBE_LENGTHS[0]) / (PROBE_LENGTHS[1] - PROBE_LENGTHS[0])
        return round(
            max(
                getattr(short, phase) + position * (getattr(long, phase) - getattr(short, phase))
                for phase in ("static", "forward", "loss", "backward")
            )
        )

    @cached_property
    def _num_weights(self) -> tuple[int, int]:
        """Number of weights in the layers, and in the head."""
        base = build_meta_model(TrainingSpec(self.spec.training.config, None, use_4bit=False))
        head = base.get_output_embeddings()
        layers = sum(
            module.weight.numel()
            for module in base.modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        )
        return layers, sum(parameter.numel() for parameter in head.parameters())

    def seconds(
        self, policy: ActivationCheckpointing, num_tokens: int, device: Device, utilization: float
    ) -> float | None:
        """Returns the time of a micro-batch at a share of the device's matrix rate; None when that is not known."""
        if device.tflops is None:
            return None
        layers, head = self._num_weights
        config = self.spec.training.config
        attention = 2 * self.spec.mean_length * config.hidden_size * config.num_hidden_layers  # causal: half of it
        flops_per_token = 2 * PASSES[policy] * (layers + attention) + 4 * head * self.spec.labeled_fraction
        return num_tokens * flops_per_token / (device.tflops * 1e12 * utilization)

    def options(self, device: Device, utilization: float = 0.4) -> list[PlanOption]:
        """Returns every policy at every batch size, whether it fits or not."""
        return [
            PlanOption(
                policy,
                batch_size,
                self.peak_bytes(policy, batch_size * self.spec.max_length),
                self.seconds(policy, int(batch_size * self.spec.mean_length), device, utilization),
            )
            for policy in POLICIES
            for batch_size in BATCH_SIZES
        ]


def best_option(options: list[PlanOption], device: Device, samples_per_step: int) -> PlanOption:
    """Returns the fastest option that fits: the least recomputation, then the largest batch size.

    >>> options = [PlanOption("none", 4, 20 * GIB, None), PlanOption("full", 4, 9 * GIB, None)]
    >>> best_option(options, DEVICES["t4"], samples_per_step=16).policy
    'full'

    Args:
        options: from `Planner.options`.
        device: that a step must fit.
        samples_per_step: over all micro-batches; the batch size must divide it.

    Raises:
        UserError: when nothing fits.
    """
    fitting = [
        option
        for option in options
        if option.peak_bytes <= device.gib * GIB and samples_per_step % option.batch_size == 0
    ]
    if not fitting:
        min_gib = min(option.peak_bytes for option in options) / GIB
        raise UserError(
            f"nothing fits into {device.gib:.1f} GiB: the minimum is {min_gib:.1f} GiB.",
            hint="Lower `data.max_length`, use `model.use_4bit=true`, a lower `model.adapter.r`, or a smaller base "
            "model.",
        )
    return min(fitting, key=lambda option: (POLICIES.index(option.policy), -option.batch_size))
