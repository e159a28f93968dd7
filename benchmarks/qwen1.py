"""How much memory loading a Qwen-1_8B takes at its full size, compared with its weights.

    python -m benchmarks.qwen1 OUTPUT TOKENIZER_DIR CHECKPOINT_DIR [--use-4bit true]

Writes a first-generation checkpoint of the original shapes and names with random weights, in shards, with the
``qwen.tiktoken`` of TOKENIZER_DIR, to CHECKPOINT_DIR, unless it exists. Then loads it as the trainer does, in a
separate process. Writes OUTPUT.json and prints it: the process's private memory, at its peak and afterwards, and the
sizes of the loaded weights and of the files.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.harness import GIB, argument_parser, environment, is_trial, run_trial, write_json
from typst_lit.files import atomic_write

NUM_LAYERS, HIDDEN_SIZE, FFN_SIZE, NUM_HEADS, VOCAB_SIZE = 24, 2048, 5504, 16, 151_936
LAYERS_PER_SHARD = 6
CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 2 * FFN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "kv_channels": HIDDEN_SIZE // NUM_HEADS,
    "seq_length": 8192,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": False,
    "no_bias": True,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "tokenizer_class": "QWenTokenizer",
}


def random_weights(*shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * 0.02).bfloat16()


def random_layer(prefix: str) -> dict[str, torch.Tensor]:
    """Returns the weights of one layer, by name."""
    return {
        f"{prefix}.ln_1.weight": torch.ones(HIDDEN_SIZE, dtype=torch.bfloat16),
        f"{prefix}.ln_2.weight": torch.ones(HIDDEN_SIZE, dtype=torch.bfloat16),
        f"{prefix}.attn.c_attn.weight": random_weights(3 * HIDDEN_SIZE, HIDDEN_SIZE),
        f"{prefix}.attn.c_attn.bias": random_weights(3 * HIDDEN_SIZE),
        f"{prefix}.attn.c_proj.weight": random_weights(HIDDEN_SIZE, HIDDEN_SIZE),
        f"{prefix}.mlp.w1.weight": random_weights(FFN_SIZE, HIDDEN_SIZE),
        f"{prefix}.mlp.w2.weight": random_weights(FFN_SIZE, HIDDEN_SIZE),
        f"{prefix}.mlp.c_proj.weight": random_weights(HIDDEN_SIZE, FFN_SIZE),
    }


def write_checkpoint(directory: Path, vocabulary: Path) -> None:
    """Writes the checkpoint, shard by shard."""
    directory.mkdir(parents=True)
    atomic_write(directory / "qwen.tiktoken", vocabulary.read_bytes())
    atomic_write(directory / "config.json", json.dumps(CONFIG).encode())
    weight_map: dict[str, str] = {}
    num_shards = NUM_LAYERS // LAYERS_PER_SHARD
    for index in range(num_shards):
        shard: dict[str, torch.Tensor] = {}
        if index == 0:
            shard["transformer.wte.weight"] = random_weights(VOCAB_SIZE, HIDDEN_SIZE)
        if index == num_shards - 1:
            shard["transformer.ln_f.weight"] = torch.ones(HIDDEN_SIZE, dtype=torch.bfloat16)
            shard["lm_head.weight"] = random_weights(VOCAB_SIZE, HIDDEN_SIZE)
        for layer in range(index * LAYERS_PER_SHARD, (index + 1) * LAYERS_PER_SHARD):
            shard |= random_layer(f"transformer.h.{layer}")
        name = f"model-{index + 1:05d}-of-{num_shards:05d}.safetensors"
        save_file(shard, directory / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": weight_map}
    atomic_write(directory / "model.safetensors.index.json", json.dumps(index).encode())


def private_memory() -> int:
    """Returns the bytes that only this process uses (RssAnon)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Loads the checkpoint in this process."""
    from typst_lit.model.backbones import PretrainedBackbone

    peak, loaded = 0, threading.Event()

    def sample_memory() -> None:
        nonlocal peak
        while not loaded.wait(0.05):
            peak = max(peak, private_memory())

    before = private_memory()
    sampler = threading.Thread(target=sample_memory)
    sampler.start()
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = PretrainedBackbone().load_model(options["checkpoint"], None, False, options["use_4bit"], device)
        seconds = time.perf_counter() - start
    finally:
        loaded.set()
        sampler.join()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "seconds": seconds,
        "peak_gib": (peak - before) / GIB,
        "after_gib": (private_memory() - before) / GIB,
        "weights_gib": weights / GIB,
        "files_gib": sum(path.stat().st_size for path in Path(options["checkpoint"]).glob("*.safetensors")) / GIB,
    }


def main(argv: Sequence[str]) -> None:
    if is_trial(argv, trial):
        return
    parser = argument_parser(__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--use-4bit", type=json.loads, default=True)
    args = parser.parse_args(argv)
    if not args.checkpoint.is_dir():
        write_checkpoint(args.checkpoint, args.tokenizer / "qwen.tiktoken")
    result = run_trial("benchmarks.qwen1", {"checkpoint": str(args.checkpoint), "use_4bit": args.use_4bit})
    result = {**environment(), "use_4bit": args.use_4bit, **result}
    write_json(args.output.with_suffix(".json"), result, args.overwrite)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
