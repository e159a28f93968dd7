"""The throughput of several ranks on one machine, and the time of their communication: the measurements in scaling.md.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling OUTPUT MODEL_DIR [--world-size 1 2] [--batch 2] [--length 512]
                                                                    [--steps 8]

Fits on random tokens with each number of ranks (gloo on CPUs, NCCL on GPUs), all with the same number of tokens per
rank. Prints and writes to OUTPUT.json: tokens per second over all ranks, the efficiency (a rank's throughput relative
to the first world size), and how long an all-reduce of gradients of the adapter's size takes by itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback

from benchmarks.harness import ResultFile, argument_parser, fit_on_random_tokens, is_trial, run_ranks

NUM_WARMUP_STEPS = 2
NUM_ALL_REDUCES = 20


class StepTimer(Callback):
    """Measures the steps after the warm-up, and the all-reduce of gradients by itself."""

    def __init__(self) -> None:
        self.start = self.seconds = self.all_reduce_seconds = 0.0
        self.num_trained = 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == NUM_WARMUP_STEPS:
            self.start = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._synchronize()
        self.seconds = time.perf_counter() - self.start
        self.num_trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        if trainer.world_size > 1:
            gradients = torch.zeros(self.num_trained, device=pl_module.device)
            torch.distributed.all_reduce(gradients)
            self._synchronize()
            start = time.perf_counter()
            for _ in range(NUM_ALL_REDUCES):
                torch.distributed.all_reduce(gradients)
            self._synchronize()
            self.all_reduce_seconds = (time.perf_counter() - start) / NUM_ALL_REDUCES

    def _synchronize(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Fits as one of the ranks, and returns what this rank measured."""
    timer = StepTimer()
    fit_on_random_tokens(options, options["steps"] + NUM_WARMUP_STEPS, [timer])
    tokens = options["world_size"] * options["batch"] * options["length"] * options["steps"]
    return {
        "tokens_per_s": tokens / timer.seconds,
        "step_seconds": timer.seconds / options["steps"],
        "gradient_mib": timer.num_trained * 4 / 2**20,
        "all_reduce_seconds": timer.all_reduce_seconds,
    }


def main(argv: Sequence[str]) -> None:
    if is_trial(argv, trial):
        return
    parser = argument_parser(__doc__)
    parser.add_argument("model", help="directory of the base model")
    parser.add_argument("--world-size", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args(argv)
    results = ResultFile(args.output, args.overwrite)
    baseline: float | None = None  # tokens per second and rank of the first world size
    for world_size in args.world_size:
        options = {
            "model": args.model, "batch": args.batch, "length": args.length, "steps": args.steps, "rank": 16,
            "policy": "full", "use_4bit": True, "world_size": world_size,
        }  # fmt: skip
        ranks = run_ranks("benchmarks.scaling", options, world_size)
        result = min(ranks, key=lambda rank: rank.get("tokens_per_s", 0.0))
        if "tokens_per_s" in result:
            per_rank = result["tokens_per_s"] / world_size
            baseline = baseline or per_rank
            result["efficiency"] = per_rank / baseline
        results.add({**options, "model": Path(args.model).name, **result})
        print(json.dumps(results.trials[-1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
