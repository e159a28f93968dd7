"""Time, memory, value and gradient of several implementations of the loss, from hidden states and the head.

    python -m benchmarks.losses OUTPUT [--rows 2048] [--hidden 2048] [--vocabulary 151936] [--dtype float32]

`plain` computes all logits; `torch` is torch's linear_cross_entropy in chunks; `liger` is Liger's kernel, where it is
installed and a GPU is available; `typst_lit` is what the trainer uses. The head is frozen, as under an adapter. Each
implementation runs in a separate process. Writes OUTPUT.json and prints the table.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.harness import GIB, ResultFile, argument_parser, is_trial, run_trial
from typst_lit.callbacks.memory_profiler import MemoryMeter
from typst_lit.model.losses import linear_cross_entropy


def plain(hidden: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    return F.cross_entropy(head(hidden).float(), targets, reduction="sum")


def torch_chunked(hidden: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, head.weight, targets, reduction="sum", options=options)


def liger(hidden: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, hidden, targets)  # type: ignore[no-any-return]


IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, nn.Linear], Tensor]] = {
    "plain": plain,
    "torch": torch_chunked,
    "liger": liger,
    "typst_lit": linear_cross_entropy,
}


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Measures one implementation in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options["dtype"])
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(options["hidden"], options["vocabulary"], bias=False, dtype=dtype)
    head.weight.data.normal_(0, 0.02, generator=generator)
    head = head.requires_grad_(False).to(device)
    hidden = torch.randn(options["rows"], options["hidden"], generator=generator).to(device, dtype).requires_grad_()
    targets = torch.randint(0, options["vocabulary"], (options["rows"],), generator=generator).to(device)
    meter = MemoryMeter(device)
    meter.reset()
    before = meter.peak()[0]
    durations = []
    for _ in range(options["repeats"]):
        hidden.grad = None
        start = time.perf_counter()
        loss = IMPLEMENTATIONS[options["implementation"]](hidden, targets, head)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    assert hidden.grad is not None
    return {
        "seconds": statistics.median(durations),
        "gib": (meter.peak()[0] - before) / GIB,
        "loss": loss.item(),
        "gradient_norm": hidden.grad.float().norm().item(),
    }


def main(argv: Sequence[str]) -> None:
    if is_trial(argv, trial):
        return
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    options = {key: value for key, value in vars(args).items() if key != "output"}
    results = ResultFile(args.output, args.overwrite, arguments=options)
    print("| | seconds | GiB above the inputs | loss | gradient norm |\n|---|---|---|---|---|")
    for implementation in IMPLEMENTATIONS:
        result = run_trial("benchmarks.losses", {**options, "implementation": implementation})
        results.add({"implementation": implementation, **result})
        if "seconds" in result:
            print(
                f"| {implementation} | {result['seconds']:.3f} | {result['gib']:.2f} | {result['loss']:.2f} | "
                f"{result['gradient_norm']:.5f} |",
                flush=True,
            )
        else:
            print(f"| {implementation} | {result.get('error', 'out of memory')} | | | |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
