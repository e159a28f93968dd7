"""What loading a Qwen-1_8B takes at its full size: memory beside the weights themselves.

    python -m benchmarks.qwen1 OUTPUT TOKENIZER_DIR FOLDER [--use-4bit true]

FOLDER becomes a first-generation checkpoint of the real shapes and names with random weights, in shards, with the
``qwen.tiktoken`` of TOKENIZER_DIR; it is kept, and used again. It is then loaded by the trainer's own code, in a
process of its own. Writes OUTPUT.json and prints it: memory that only the process has, at its peak and afterwards,
beside the bytes of the loaded weights and of the files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.harness import GIB, about, answered, in_a_process

LAYERS, HIDDEN, FFN, HEADS, VOCABULARY, LAYERS_A_SHARD = 24, 2048, 5504, 16, 151_936, 6


def write_checkpoint(folder: Path, vocabulary: Path) -> None:
    """Writes the checkpoint, shard by shard."""
    folder.mkdir(parents=True)
    shutil.copy(vocabulary, folder / "qwen.tiktoken")
    config = {
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": HIDDEN, "intermediate_size": 2 * FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "kv_channels": HIDDEN // HEADS, "seq_length": 8192,
        "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "vocab_size": VOCABULARY, "tie_word_embeddings": False,
        "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True, "tokenizer_class": "QWenTokenizer",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))

    def made(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) * 0.02).bfloat16()

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    where: dict[str, str] = {}
    shards = LAYERS // LAYERS_A_SHARD
    for number in range(shards):
        shard: dict[str, torch.Tensor] = {}
        if number == 0:
            shard["transformer.wte.weight"] = made(VOCABULARY, HIDDEN)
        if number == shards - 1:
            shard |= {"transformer.ln_f.weight": ones, "lm_head.weight": made(VOCABULARY, HIDDEN)}
        for layer in range(number * LAYERS_A_SHARD, (number + 1) * LAYERS_A_SHARD):
            at = f"transformer.h.{layer}"
            shard |= {
                f"{at}.ln_1.weight": ones.clone(), f"{at}.ln_2.weight": ones.clone(),
                f"{at}.attn.c_attn.weight": made(3 * HIDDEN, HIDDEN), f"{at}.attn.c_attn.bias": made(3 * HIDDEN),
                f"{at}.attn.c_proj.weight": made(HIDDEN, HIDDEN), f"{at}.mlp.w1.weight": made(FFN, HIDDEN),
                f"{at}.mlp.w2.weight": made(FFN, HIDDEN), f"{at}.mlp.c_proj.weight": made(HIDDEN, FFN),
            }  # fmt: skip
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        where |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _anonymous() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Loads the checkpoint in this process."""
    from typst_lit.model.backbones import PretrainedBackbone

    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.05):
            most = max(most, _anonymous())

    before = _anonymous()
    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PretrainedBackbone().load_model(options["folder"], None, False, options["use_4bit"], device)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "seconds": seconds, "peak_gib": (most - before) / GIB, "after_gib": (_anonymous() - before) / GIB,
        "weights_gib": weights / GIB,
        "files_gib": sum(path.stat().st_size for path in Path(options["folder"]).glob("*.safetensors")) / GIB,
    }  # fmt: skip


def main(args: Sequence[str]) -> None:
    if answered(args, trial):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--use-4bit", type=json.loads, default=True)
    given = parser.parse_args(args)
    if not given.folder.is_dir():
        write_checkpoint(given.folder, given.tokenizer / "qwen.tiktoken")
    found = in_a_process("benchmarks.qwen1", {"folder": str(given.folder), "use_4bit": given.use_4bit})
    text = json.dumps({**about(), "use_4bit": given.use_4bit, **found}, indent=2)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.with_suffix(".json").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
