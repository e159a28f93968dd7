"""How fast a fit is: tokens a second, the share of the device's own matrix rate, and where a step's time goes.

    python -m benchmarks.throughput OUTPUT MODEL_DIR [--batch 4] [--length 2048] [--rank 16] [--policy full none]
                                    [--use-4bit true false] [--packed 0] [--compile] [--steps 10] [--limit-gib 15]
                                    [--liger] [--peft-lora]

The tokens are random, and all of them are learned, so none is padding. The rate of the device is that of one large
matrix product in the precision of the fit. The share counts the products that have to be: forward and backward through
frozen weights, and the head twice; what checkpointing computes again does not count. Writes OUTPUT.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.harness import about, answered, fit_on_random_tokens, in_a_process, limit_memory

WARM_UP = 3  # steps that are not measured


class StepClock(Callback):
    """Takes the time of the parts of each step."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
        self.steps: list[float] = []
        self.began = self.last = 0.0

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _close(self, part: str) -> None:
        now = self._now()
        self.parts[part].append(now - self.last)
        self.last = now

    def on_train_batch_start(self, *_: Any) -> None:
        self.began = self.last = self._now()

    def on_before_backward(self, *_: Any) -> None:
        self._close("forward")

    def on_after_backward(self, *_: Any) -> None:
        self._close("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self._close("optimizer")
        self.steps.append(self.last - self.began)


def matrix_rate(dtype: torch.dtype) -> float:
    """Returns the FLOP/s of a large matrix product on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 8192 if device.type == "cuda" else 2048
    one, two = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(8):
        began = time.perf_counter()
        one @ two
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:])


def flops_a_token(model: str, length: int) -> float:
    """Returns the work that a step has to do for a token: frozen weights, so each product is done twice, not thrice."""
    from transformers import AutoConfig

    from typst_lit.planning.fake_step import meta_model

    config = AutoConfig.from_pretrained(model)
    base, _ = meta_model(config, None, False, torch.bfloat16)
    weights = sum(module.weight.numel() for module in base.modules() if isinstance(module, torch.nn.Linear))
    attention = length * config.num_attention_heads * base.config.head_dim * config.num_hidden_layers
    return 4.0 * weights + 2 * 3.5 * attention


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Measures one setting in this process."""
    limit_memory(options["limit_gib"])
    cuda = torch.cuda.is_available()
    dtype = (torch.float16 if options["limit_gib"] else torch.bfloat16) if cuda else torch.float32
    rate = matrix_rate(dtype)
    clock = StepClock()
    fit_on_random_tokens(options, WARM_UP + options["steps"], [clock])
    seconds = statistics.median(clock.steps[WARM_UP:])
    tokens = options["batch"] * options["length"]
    length = options["length"] // (options["packed"] or 1)
    return {
        "out_of_memory": False,
        "tokens_per_s": tokens / seconds,
        "matrix_tflops": rate / 1e12,
        "share": tokens / seconds * flops_a_token(options["model"], length) / rate,
        "first_step_s": clock.steps[0],
        **{part: statistics.median(times[WARM_UP:]) for part, times in clock.parts.items()},
    }


def main() -> None:
    if answered(sys.argv[1:], trial):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--length", type=int, nargs="+", default=[2048])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--policy", nargs="+", default=["full", "none"])
    parser.add_argument("--use-4bit", nargs="+", default=["true"], choices=["true", "false"])
    parser.add_argument("--packed", type=int, nargs="+", default=[0], help="documents a row; 0 packs nothing")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--peft-lora", action="store_true", help="leave LoRA's forward pass to PEFT, to compare")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--limit-gib", type=float)
    args = parser.parse_args()
    rows = []
    print("| batch | length | documents a row | weights | checkpointing | tokens/s | share | forward, backward, rest |")
    print("|---|---|---|---|---|---|---|---|")
    for batch, length, policy, bits, packed in itertools.product(
        args.batch, args.length, args.policy, args.use_4bit, args.packed
    ):
        options = {
            "model": args.model, "batch": batch, "length": length, "rank": args.rank, "policy": policy,
            "use_4bit": bits == "true", "packed": packed, "compile": args.compile, "liger": args.liger,
            "peft_lora": args.peft_lora, "steps": args.steps,
            "limit_gib": args.limit_gib,
        }  # fmt: skip
        found = in_a_process("benchmarks.throughput", options)
        if "failed" in found:
            raise SystemExit(f"a trial failed: {options}: {found['failed']}")
        rows.append({**options, "model": Path(args.model).name, **found})
        told = "out of memory | | |"
        if not found.get("out_of_memory"):
            parts = ", ".join(f"{found[part]:.3f}" for part in ("forward", "backward", "optimizer"))
            told = f"{found['tokens_per_s']:.0f} | {100 * found['share']:.0f} % | {parts} |"
        weights = "4-bit" if bits == "true" else "16-bit"
        print(f"| {batch} | {length} | {packed or 1} | {weights} | {policy} | {told}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps({**about(), "trials": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
