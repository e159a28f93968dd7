"""The ways to compute the loss from hidden states and the head: time and memory, value and gradient.

    python -m benchmarks.losses OUTPUT [--rows 2048] [--hidden 2048] [--vocabulary 151936] [--dtype float32]

`plain` makes all logits; `torch` is torch's linear_cross_entropy in chunks; `liger` Liger's kernel, where it is
installed and a GPU is there; `ours` is what the trainer uses. The head is frozen, as under an adapter. Each way is a
process of its own. Writes OUTPUT.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.harness import GIB, about, answered, in_a_process
from typst_lit.callbacks.memory_profiler import MemoryMeter
from typst_lit.model.losses import linear_cross_entropy


def plain(rows: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    return F.cross_entropy(head(rows).float(), targets, reduction="sum")


def by_torch(rows: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(rows, head.weight, targets, reduction="sum", options=options)


def liger(rows: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, rows, targets)  # type: ignore[no-any-return]


WAYS: dict[str, Callable[[Tensor, Tensor, nn.Linear], Tensor]] = {
    "plain": plain, "torch": by_torch, "liger": liger,
    "ours": lambda rows, targets, head: linear_cross_entropy(rows, targets, head),
}  # fmt: skip


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Measures one way in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options["dtype"])
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(options["hidden"], options["vocabulary"], bias=False, dtype=dtype)
    head.weight.data.normal_(0, 0.02, generator=generator)
    head = head.requires_grad_(False).to(device)
    rows = torch.randn(options["rows"], options["hidden"], generator=generator).to(device, dtype).requires_grad_()
    targets = torch.randint(0, options["vocabulary"], (options["rows"],), generator=generator).to(device)
    meter = MemoryMeter(device)
    meter.reset()
    before = meter.peak()[0]
    times = []
    for _ in range(options["repeats"]):
        rows.grad = None
        began = time.perf_counter()
        loss = WAYS[options["way"]](rows, targets, head)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    assert rows.grad is not None
    return {
        "way": options["way"], "seconds": statistics.median(times), "gib": (meter.peak()[0] - before) / GIB,
        "loss": loss.item(), "gradient_norm": rows.grad.float().norm().item(),
    }  # fmt: skip


def main(args: Sequence[str]) -> None:
    if answered(args, trial):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(args)
    options = {key: value for key, value in vars(given).items() if key != "output"}
    trials = []
    for way in WAYS:
        found = in_a_process("benchmarks.losses", {**options, "way": way})
        if "way" in found:
            trials.append(found)
        else:
            print(f"{way}: {found.get('failed', 'out of memory')}", file=sys.stderr)
    print("| | seconds | GiB above the inputs | loss | norm of the gradient |\n|---|---|---|---|---|")
    for found in trials:
        print(
            f"| {found['way']} | {found['seconds']:.3f} | {found['gib']:.2f} | {found['loss']:.2f} | "
            f"{found['gradient_norm']:.5f} |"
        )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.with_suffix(".json").write_text(
        json.dumps({**about(), "arguments": options, "trials": trials}, indent=2) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
