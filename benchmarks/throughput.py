"""How fast a fit is: tokens per second, the share of the device's matrix throughput, and the time of a step's phases.

    python -m benchmarks.throughput OUTPUT MODEL_DIR [--batch 4] [--length 2048] [--rank 16] [--policy full none]
                                    [--use-4bit true false] [--packed 0] [--compile] [--steps 10] [--limit-gib 15]
                                    [--liger] [--peft-lora]

All tokens are random and labeled, so none is padding. The device's throughput is that of one large matrix product in
the precision of the fit. The share counts the necessary products only: forward and backward through frozen weights, and
the head twice; what activation checkpointing recomputes does not count. Each trial is a separate process; running out
of memory is a row of the table. Writes OUTPUT.json.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.harness import (
    ResultFile,
    add_fit_arguments,
    argument_parser,
    fit_on_random_tokens,
    fit_options,
    is_trial,
    limit_memory,
    precision,
    run_trial,
)
from typst_lit.model.backbones import compute_dtype

NUM_WARMUP_STEPS = 3
PHASES = ("forward", "backward", "optimizer")


class PhaseTimer(Callback):
    """Measures the phases of each step."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.steps: list[float] = []
        self.step_start = self.phase_start = 0.0

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _end_phase(self, phase: str) -> None:
        now = self._now()
        self.phases[phase].append(now - self.phase_start)
        self.phase_start = now

    def on_train_batch_start(self, *_: Any) -> None:
        self.step_start = self.phase_start = self._now()

    def on_before_backward(self, *_: Any) -> None:
        self._end_phase("forward")

    def on_after_backward(self, *_: Any) -> None:
        self._end_phase("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self._end_phase("optimizer")
        self.steps.append(self.phase_start - self.step_start)


def matrix_flops_per_s(precision: str) -> float:
    """Returns the FLOP/s of a large matrix product on this machine, in the dtype of a trainer's precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(device, precision)
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    durations = []
    for _ in range(8):
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(durations[2:])


def flops_per_token(model: str, length: int) -> float:
    """Returns the necessary operations of a step per token. Weights are frozen: two products for each, not three."""
    from transformers import AutoConfig

    from typst_lit.model.preparation import TrainingSpec
    from typst_lit.planning.fake_step import build_meta_model

    config = AutoConfig.from_pretrained(model)
    base = build_meta_model(TrainingSpec(config, None, use_4bit=False))
    weights = sum(module.weight.numel() for module in base.modules() if isinstance(module, torch.nn.Linear))
    attention = length * config.num_attention_heads * base.config.head_dim * config.num_hidden_layers
    return 4.0 * weights + 2 * 3.5 * attention


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Measures one setting in this process."""
    limit_memory(options["limit_gib"])
    device_flops_per_s = matrix_flops_per_s(precision(options))
    timer = PhaseTimer()
    fit_on_random_tokens(options, NUM_WARMUP_STEPS + options["steps"], [timer])
    seconds = statistics.median(timer.steps[NUM_WARMUP_STEPS:])
    tokens_per_s = options["batch"] * options["length"] / seconds
    document_length = options["length"] // (options["packed"] or 1)
    return {
        "tokens_per_s": tokens_per_s,
        "matrix_tflops": device_flops_per_s / 1e12,
        "share": tokens_per_s * flops_per_token(options["model"], document_length) / device_flops_per_s,
        "first_step_s": timer.steps[0],
        **{phase: statistics.median(durations[NUM_WARMUP_STEPS:]) for phase, durations in timer.phases.items()},
    }


def main(argv: Sequence[str]) -> None:
    if is_trial(argv, trial):
        return
    parser = argument_parser(__doc__)
    add_fit_arguments(parser, batch=[4], policy=["full", "none"])
    parser.add_argument("--packed", type=int, nargs="+", default=[0], help="documents per row; 0 for no packing")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--peft-lora", action="store_true", help="PEFT's LoRA forward pass, for comparison")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(argv)
    results = ResultFile(args.output, args.overwrite)
    print(
        "| batch | length | documents per row | weights | checkpointing | tokens/s | share | forward, backward, rest |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for options in fit_options(args):
        for packed in args.packed:
            options = {
                **options, "packed": packed, "compile": args.compile, "liger": args.liger, "peft_lora": args.peft_lora,
                "steps": args.steps,
            }  # fmt: skip
            result = run_trial("benchmarks.throughput", options)
            results.add({**options, "model": Path(args.model).name, **result})
            measured = f"{result.get('error', 'out of memory')} | | |"
            if "tokens_per_s" in result:
                phases = ", ".join(f"{result[phase]:.3f}" for phase in PHASES)
                measured = f"{result['tokens_per_s']:.0f} | {100 * result['share']:.0f} % | {phases} |"
            print(
                f"| {options['batch']} | {options['length']} | {packed or 1} | "
                f"{'4-bit' if options['use_4bit'] else '16-bit'} | {options['policy']} | {measured}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
