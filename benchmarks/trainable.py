"""How many weights a LoRA adapter trains on Qwen3-1.7B, by rank and target modules: python benchmarks/trainable.py

Counted on a model of that shape without memory behind it, so it takes seconds and no download.
"""

from __future__ import annotations

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from benchmarks.shapes import QWEN3_1_7B
from typst_lit.model.adapters import attach_adapter

if __name__ == "__main__":
    print("| rank | q_proj + v_proj | attention | attention+mlp = all-linear |\n|---|---|---|---|")
    for rank in (4, 8, 16, 32, 64):
        counts = []
        for targets in (["q_proj", "v_proj"], "attention", "attention+mlp"):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(QWEN3_1_7B)
            adapted = attach_adapter(model, LoraConfig(r=rank, target_modules=targets))
            counts.append(sum(p.numel() for p in adapted.parameters() if p.requires_grad))
        print(f"| {rank} | " + " | ".join(f"{count / 1e6:.2f} M" for count in counts) + " |")
