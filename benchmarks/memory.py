"""What a fit holds, across batch sizes, lengths, ranks, precisions and checkpointing, beside what `plan` predicts.

    python -m benchmarks.memory OUTPUT MODEL_DIR [--batch 1 2 4 8 16] [--length 2048 4096] [--rank 16] [--policy full]
                                [--use-4bit true false] [--limit-gib 15]

Every trial is a process of its own; running out of memory is a row of the table, not the end. `--limit-gib` emulates a
smaller card, in the precision that a T4 has. Writes OUTPUT.json (with machine and versions) and OUTPUT.png.

The guide's figures for a 15 GB T4 at 2048 stand beside, and the floor by arithmetic: weights, adapter with its
optimizer's state, the layers' inputs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from benchmarks.harness import GIB, about, answered, fit_on_random_tokens, in_a_process, limit_memory

GUIDE = {(1, 2048): "6", (2, 2048): "8", (4, 2048): "12", (8, 2048): "out of memory", (1, 4096): "20"}
STEPS = 3


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Fits a model for a few steps on random tokens, and returns what it held."""
    import typst_lit.cli.fit  # noqa: F401 - the libraries' own memory shall not count: all are loaded here
    from typst_lit.callbacks.memory_profiler import MemoryMeter
    from typst_lit.model.oom import is_out_of_memory

    cuda = torch.cuda.is_available()
    limit_memory(options["limit_gib"])
    meter = MemoryMeter(torch.device("cuda", 0) if cuda else torch.device("cpu"))
    meter.reset()
    before = 0 if cuda else meter.peak()[0]
    began = time.perf_counter()
    try:
        fit_on_random_tokens(options, STEPS)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"out_of_memory": True}
    allocated, reserved = meter.peak()
    return {
        "allocated": allocated - before,
        "reserved": reserved - before,
        "seconds": (time.perf_counter() - began) / STEPS,
    }


def predicted(options: dict[str, Any]) -> dict[str, float]:
    """Returns what `plan` predicts, and the floor by arithmetic, in bytes."""
    from peft import LoraConfig
    from transformers import AutoConfig

    from typst_lit.planning.fake_step import meta_model, simulated_step
    from typst_lit.planning.from_config import OUTSIDE_GIB

    config = AutoConfig.from_pretrained(options["model"])
    rank = options["rank"]
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="attention+mlp")
    dtype = torch.float32 if not torch.cuda.is_available() else torch.bfloat16
    batch, length = options["batch"], options["length"]
    peaks = simulated_step(config, adapter, options["use_4bit"], options["policy"], batch, length, dtype=dtype)
    _, whole = meta_model(config, adapter, options["use_4bit"], dtype)
    weights = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in whole.parameters())
    inputs = batch * length * config.hidden_size * config.num_hidden_layers * dtype.itemsize
    outside = 0 if torch.cuda.is_available() else OUTSIDE_GIB["cpu"] * GIB  # torch counts tensors only
    return {"predicted": peaks.most + outside, "floor": weights + inputs}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table, in GiB."""
    head = "| batch | length | rank | weights | checkpointing | measured | predicted | off | floor | guide (GB) |"
    lines = [head, "|" + "---|" * 10]
    for row in rows:
        measured, off = row.get("failed", "out of memory"), ""
        if "allocated" in row:
            measured = f"{row['allocated'] / GIB:.2f}"
            off = f"{100 * (row['predicted'] / row['allocated'] - 1):+.0f} %"
        bits = "4-bit" if row["use_4bit"] else "16-bit"
        lines.append(
            f"| {row['batch']} | {row['length']} | {row['rank']} | {bits} | {row['policy']} | {measured} | "
            f"{row['predicted'] / GIB:.2f} | {off} | {row['floor'] / GIB:.2f} | "
            f"{GUIDE.get((row['batch'], row['length']), '')} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws measured peaks against predicted ones."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        some = [row for row in rows if row["policy"] == policy and "allocated" in row]
        axes.plot([r["predicted"] / GIB for r in some], [r["allocated"] / GIB for r in some], "o", label=policy)
    most = max((row["predicted"] / GIB for row in rows if "allocated" in row), default=1.0)
    axes.plot([0, most], [0, most], color="gray", linewidth=0.8)
    axes.set(xlabel="predicted GiB", ylabel="measured GiB")
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    if answered(sys.argv[1:], trial):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, nargs="+", default=[2048])
    parser.add_argument("--rank", type=int, nargs="+", default=[16])
    parser.add_argument("--policy", nargs="+", default=["full"])
    parser.add_argument("--use-4bit", nargs="+", default=["true"], choices=["true", "false"])
    parser.add_argument("--limit-gib", type=float)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for batch, length, rank, policy, bits in itertools.product(
        args.batch, args.length, args.rank, args.policy, args.use_4bit
    ):
        options = {
            "model": args.model, "batch": batch, "length": length, "rank": rank, "policy": policy,
            "use_4bit": bits == "true", "limit_gib": args.limit_gib,
        }  # fmt: skip
        rows.append(
            {
                **options,
                "model": Path(args.model).name,
                **predicted(options),
                **in_a_process("benchmarks.memory", options),
            }
        )
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        args.output.with_suffix(".json").write_text(json.dumps({**about(), "trials": rows}, indent=2) + "\n", "utf-8")
    draw(rows, args.output.with_suffix(".png"))
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
