"""How much memory a fit uses, by batch size, length, rank, precision and checkpointing, compared with `plan`.

    python -m benchmarks.memory OUTPUT MODEL_DIR [--batch 1 2 4 8 16] [--length 2048 4096] [--rank 16] [--policy full]
                                [--use-4bit true false] [--limit-gib 15]

Each trial is a separate process; running out of memory is a row of the table. `--limit-gib` emulates a smaller GPU, in
the precision of a T4. Writes OUTPUT.json (with machine and versions) and OUTPUT.png.

The table also has the figures of the guide for a 15 GB T4 at 2048 tokens, and a computed lower bound: weights, adapter
with its optimizer state, and the layers' inputs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from benchmarks.harness import (
    GIB,
    OUTPUT_HINT,
    ResultFile,
    add_fit_arguments,
    argument_parser,
    fit_on_random_tokens,
    fit_options,
    is_trial,
    limit_memory,
    run_trial,
)
from typst_lit.manifest import write_output

GUIDE_GB = {(1, 2048): "6", (2, 2048): "8", (4, 2048): "12", (8, 2048): "out of memory", (1, 4096): "20"}
NUM_STEPS = 3


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Fits a model for a few steps on random tokens, and returns how much memory it used."""
    import typst_lit.cli.fit  # noqa: F401 - loads all libraries, so that their own memory is not counted
    from typst_lit.callbacks.memory_profiler import MemoryMeter

    on_gpu = torch.cuda.is_available()
    limit_memory(options["limit_gib"])
    meter = MemoryMeter(torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    meter.reset()
    before = 0 if on_gpu else meter.peak()[0]
    start = time.perf_counter()
    fit_on_random_tokens(options, NUM_STEPS)
    allocated, reserved = meter.peak()
    return {
        "allocated": allocated - before,
        "reserved": reserved - before,
        "seconds": (time.perf_counter() - start) / NUM_STEPS,
    }


def predicted(options: Mapping[str, Any]) -> dict[str, float]:
    """Returns the peak that `plan` predicts, and the computed lower bound, in bytes."""
    from peft import LoraConfig
    from transformers import AutoConfig

    from typst_lit.model.preparation import TrainingSpec
    from typst_lit.planning.fake_step import build_meta_model, measure_fake_step
    from typst_lit.planning.from_config import OVERHEAD_GIB

    on_gpu = torch.cuda.is_available()
    config = AutoConfig.from_pretrained(options["model"])
    rank = options["rank"]
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="attention+mlp")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    batch, length = options["batch"], options["length"]
    spec = TrainingSpec(config, adapter, options["use_4bit"], dtype)
    memory = measure_fake_step(spec, options["policy"], batch, length)
    model = build_meta_model(spec)
    weights = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())
    inputs = batch * length * config.hidden_size * config.num_hidden_layers * dtype.itemsize
    outside = 0 if on_gpu else OVERHEAD_GIB["cpu"] * GIB  # on a GPU, torch counts tensors only
    return {"predicted": memory.peak + outside, "floor": weights + inputs}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as a Markdown table, in GiB."""
    header = (
        "| batch | length | rank | weights | checkpointing | measured | predicted | error | lower bound | guide (GB) |"
    )
    lines = [header, "|" + "---|" * 10]
    for row in rows:
        measured, error = row.get("error", "out of memory"), ""
        if "allocated" in row:
            measured = f"{row['allocated'] / GIB:.2f}"
            error = f"{100 * (row['predicted'] / row['allocated'] - 1):+.0f} %"
        weights = "4-bit" if row["use_4bit"] else "16-bit"
        lines.append(
            f"| {row['batch']} | {row['length']} | {row['rank']} | {weights} | {row['policy']} | {measured} | "
            f"{row['predicted'] / GIB:.2f} | {error} | {row['floor'] / GIB:.2f} | "
            f"{GUIDE_GB.get((row['batch'], row['length']), '')} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path, overwrite: bool) -> None:
    """Draws measured against predicted peaks."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    measured = [row for row in rows if "allocated" in row]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        points = [(row["predicted"] / GIB, row["allocated"] / GIB) for row in measured if row["policy"] == policy]
        axes.plot([x for x, _ in points], [y for _, y in points], "o", label=policy)
    maximum = max((row["predicted"] / GIB for row in measured), default=1.0)
    axes.plot([0, maximum], [0, maximum], color="gray", linewidth=0.8)
    axes.set(xlabel="predicted GiB", ylabel="measured GiB")
    axes.legend()
    write_output(path, partial(figure.savefig, dpi=100), overwrite, hint=OUTPUT_HINT)


def main(argv: Sequence[str]) -> None:
    if is_trial(argv, trial):
        return
    parser = argument_parser(__doc__)
    add_fit_arguments(parser, batch=[1, 2, 4, 8, 16], policy=["full"])
    args = parser.parse_args(argv)
    results = ResultFile(args.output, args.overwrite)
    for options in fit_options(args):
        result = run_trial("benchmarks.memory", options)
        results.add({**options, "model": Path(args.model).name, **predicted(options), **result})
        print(table(results.trials[-1:]).splitlines()[-1], flush=True)
    draw(results.trials, args.output.with_suffix(".png"), args.overwrite)
    print("\n" + table(results.trials))


if __name__ == "__main__":
    main(sys.argv[1:])
