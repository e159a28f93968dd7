"""What fits where: peaks and step times for every batch size and policy, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from peft import PeftConfig
from transformers import PretrainedConfig

from typst_lit.errors import UserError
from typst_lit.model.activation_checkpointing import ActivationCheckpointing
from typst_lit.planning.fake_step import Peaks, meta_model, simulated_step

GIB = 2**30
POLICIES: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")  # the fastest first
ROWS = (1, 2, 4, 8, 16, 32)
PROBED = (2048, 4096)  # tokens of the simulated steps; each phase's peak is affine in them
# A forward pass is one part of work, the backward pass one for the activations: the frozen weights have no gradient.
# Computing again adds another; attention is a tenth to a third of it in long documents.
PASSES = {"none": 2.0, "selective": 2.9, "full": 3.0, "offload": 3.0}


class Device(NamedTuple):
    """An accelerator as a plan sees it.

    Attributes:
        gib: memory that a process can use, its own context and the allocator's gaps taken off.
        tflops: what matrix products reach in 16 bits, not what the data sheet says; None when it is not known.
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


class Option(NamedTuple):
    """One way to run a step: its policy, samples at a time, and what that takes."""

    policy: ActivationCheckpointing
    rows: int
    peak: int  # bytes
    seconds: float | None  # of a micro-batch


@dataclass(frozen=True)
class Job:
    """What is to be fitted.

    Attributes:
        config: of the base model.
        adapter: its adapter; None to train all weights.
        use_4bit: whether the linear layers are in 4 bits.
        length: tokens of the longest sample.
        mean_length: of a sample.
        labelled: share of the tokens that the loss is taken on.
        dtype: that of the frozen weights and of mixed precision.
    """

    config: PretrainedConfig
    adapter: PeftConfig | None
    use_4bit: bool
    length: int
    mean_length: float
    labelled: float
    dtype: torch.dtype


class Predictor:
    """Peaks and times of a job, from two simulated steps a policy."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._probes: dict[str, tuple[Peaks, Peaks]] = {}

    def peak(self, policy: ActivationCheckpointing, tokens: int) -> int:
        """Returns the most bytes that a step on so many tokens holds."""
        if policy not in self._probes:
            job = self.job
            one, two = (
                simulated_step(
                    job.config, job.adapter, job.use_4bit, policy, 1, probed, labelled=job.labelled, dtype=job.dtype
                )
                for probed in PROBED
            )
            self._probes[policy] = one, two
        one, two = self._probes[policy]
        share = (tokens - PROBED[0]) / (PROBED[1] - PROBED[0])
        return round(
            max(
                getattr(one, phase) + share * (getattr(two, phase) - getattr(one, phase))
                for phase in ("static", "forward", "loss", "backward")
            )
        )

    @cached_property
    def _weights(self) -> tuple[int, int]:
        """Weights in the layers, and in the head."""
        base, _ = meta_model(self.job.config, None, False, torch.bfloat16)
        head = base.get_output_embeddings()
        layers = sum(
            module.weight.numel()
            for module in base.modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        )
        return layers, sum(parameter.numel() for parameter in head.parameters())

    def seconds(self, policy: ActivationCheckpointing, tokens: int, device: Device, share: float) -> float | None:
        """Returns the time of a micro-batch at a share of the device's matrix rate; None when that is not known."""
        if device.tflops is None:
            return None
        layers, head = self._weights
        config = self.job.config
        attention = 2 * self.job.mean_length * config.hidden_size * config.num_hidden_layers  # causal: half of it
        flops = 2 * PASSES[policy] * (layers + attention) + 4 * head * self.job.labelled
        return tokens * flops / (device.tflops * 1e12 * share)

    def options(self, device: Device, share: float = 0.4) -> list[Option]:
        """Returns every policy at every batch size, whether it fits or not."""
        found = []
        for policy in POLICIES:
            for rows in ROWS:
                peak = self.peak(policy, rows * self.job.length)
                seconds = self.seconds(policy, int(rows * self.job.mean_length), device, share)
                found.append(Option(policy, rows, peak, seconds))
        return found


def choose(options: list[Option], device: Device, samples: int) -> Option:
    """Returns the fastest option that fits and divides the samples of a step: least computed again, then most at once.

    Raises:
        UserError: when nothing fits.
    """
    fitting = [option for option in options if option.peak <= device.gib * GIB and samples % option.rows == 0]
    if not fitting:
        least = min(options, key=lambda option: option.peak)
        raise UserError(
            f"nothing fits into {device.gib:.1f} GiB: the least is {least.peak / GIB:.1f} GiB. Lower "
            "--data.max_length, use --model.use_4bit true, a lower --model.adapter.r, or a smaller base model."
        )
    return min(fitting, key=lambda option: (POLICIES.index(option.policy), -option.rows))
