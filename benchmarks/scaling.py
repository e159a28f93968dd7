"""What more processes give, and what they cost each other: the measured side of scaling.md.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling OUTPUT MODEL_DIR [--processes 1 2] [--batch 2] [--length 512]
                                                                    [--steps 8]

A fit on random tokens, by so many processes of one machine (gloo on CPUs, NCCL on GPUs), each with as many tokens:
tokens a second over all, the share of the first's rate that each keeps, and how long the processes take to add up
gradients of the adapter's size with nothing else to do. Writes OUTPUT.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback

from benchmarks.harness import about, answered, fit_on_random_tokens

WARM_UP = 2  # steps that are not counted
SUMS = 20


class Clock(Callback):
    """Times the steps after the first few, and the addition of gradients by itself."""

    def __init__(self) -> None:
        self.began = self.seconds = self.sum_seconds = 0.0
        self.trained = 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.began = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - self.began
        self.trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        if trainer.world_size > 1:
            gradients = torch.zeros(self.trained, device=pl_module.device)
            torch.distributed.all_reduce(gradients)
            began = time.perf_counter()
            for _ in range(SUMS):
                torch.distributed.all_reduce(gradients)
            self.sum_seconds = (time.perf_counter() - began) / SUMS


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Fits as one of the processes, and returns what this one saw."""
    clock = Clock()
    fit_on_random_tokens(options, options["steps"] + WARM_UP, [clock])
    tokens = options["processes"] * options["batch"] * options["length"] * options["steps"]
    return {
        "tokens_per_s": tokens / clock.seconds,
        "step_seconds": clock.seconds / options["steps"],
        "gradient_mib": clock.trained * 4 / 2**20,
        "sum_seconds": clock.sum_seconds,
    }


def main(args: Sequence[str]) -> None:
    if answered(args, trial):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("model")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args(args)
    rows: list[dict[str, Any]] = []
    for processes in given.processes:
        options = {
            "model": given.model, "batch": given.batch, "length": given.length, "steps": given.steps, "rank": 16,
            "policy": "full", "use_4bit": True, "processes": processes,
        }  # fmt: skip
        call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        call += ["-m", "benchmarks.scaling", "--trial", json.dumps(options)]
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found = [json.loads(line) for line in lines]
        slowest = min(found, key=lambda each: each["tokens_per_s"])
        first = rows[0]["tokens_per_s"] / rows[0]["processes"] if rows else slowest["tokens_per_s"] / processes
        kept = slowest["tokens_per_s"] / processes / first
        rows.append({**options, "model": Path(given.model).name, **slowest, "kept": kept})
        print(json.dumps(rows[-1]), flush=True)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about(), "trials": rows}, indent=2)
    given.output.with_suffix(".json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
