"""The number of parameters that a LoRA adapter trains on Qwen3-1.7B, by rank and target modules.

    python -m benchmarks.count_parameters

The model is on the meta device, so this takes seconds and no download.
"""

from __future__ import annotations

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from benchmarks.model_configs import QWEN3_1_7B
from typst_lit.model.adapters import attach_adapter


def main() -> None:
    print("| rank | q_proj + v_proj | attention | attention+mlp = all-linear |\n|---|---|---|---|")
    for rank in (4, 8, 16, 32, 64):
        counts = []
        for target_modules in (["q_proj", "v_proj"], "attention", "attention+mlp"):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(QWEN3_1_7B)
            adapted = attach_adapter(model, LoraConfig(r=rank, target_modules=target_modules))
            counts.append(sum(p.numel() for p in adapted.parameters() if p.requires_grad))
        print(f"| {rank} | " + " | ".join(f"{count / 1e6:.2f} M" for count in counts) + " |")


if __name__ == "__main__":
    main()
