"""Documents of a model with random weights: what decoding guarantees without any learning.

    python -m benchmarks.random_weights OUTPUT [--tokenizer DIR] [--documents 200] [--tokens 300] [--overwrite]

The records are the demo's, the contract is that of its style. Temperature 1, all tokens may be sampled. Each document
should compile as it was written, none should be empty, and with the contract no word should be invented. Writes
OUTPUT.json with a trial for each of: without and with the contract.
"""

from __future__ import annotations

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.harness import ResultFile, argument_parser
from typst_lit import GenerationSettings, Generator
from typst_lit.contract.learning import TrainingPair, learn_contract
from typst_lit.contract.text_contract import TextContract
from typst_lit.data.prompts import ReportPrompt
from typst_lit.model.locations import path_or_name
from typst_lit.typesetting.typesetter import Typesetter

SAMPLES = files("typst_lit") / "data/samples"


def random_model(tokenizer: Any) -> PreTrainedModel:
    """Returns a Qwen3 of two narrow layers with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=16384, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def style_contract(typesetter: Typesetter) -> TextContract:
    """Returns the contract of the demo's samples."""
    pairs = json.loads((SAMPLES / "reports.json").read_text("utf-8"))
    results = typesetter.compile_many(pair["output"] for pair in pairs)
    contract = learn_contract(
        [
            TrainingPair(pair["input"], ReportPrompt().body_field, pair["output"], result)
            for pair, result in zip(pairs, results, strict=True)
        ]
    )
    assert contract is not None
    return contract


def measure(generator: Generator, num_documents: int, num_tokens: int) -> dict[str, Any]:
    """Generates documents and returns what became of them."""
    held_out = json.loads((SAMPLES / "held_out.json").read_text("utf-8"))
    documents = []
    start = time.monotonic()
    for first in range(0, num_documents, len(held_out)):  # a seed gives each record one document
        generator.settings = GenerationSettings(
            max_tokens=num_tokens, temperature=1.0, top_p=1.0, top_k=0, seed=first, prompt_lookup=False
        )
        records = [pair["input"] for pair in held_out[: num_documents - first]]
        documents += generator.generate(records)
        print(f"{len(documents)} of {num_documents} documents", flush=True)
    seconds = time.monotonic() - start
    kept, discarded = (sum(getattr(d, name) for d in documents) for name in ("tokens", "discarded"))
    return {
        "documents": len(documents),
        "compile_as_written": sum(bool(d.compiled and not d.repairs) for d in documents),
        "empty": sum(d.result is None or not d.result.text.strip() for d in documents),
        "with_invented_words": sum(bool(d.invented_words) for d in documents),
        "tokens": kept,
        "kept_share": round(kept / (kept + discarded), 3),
        "rollbacks": sum(d.rollbacks for d in documents),
        "tokens_per_s": round(kept / seconds, 1),
        "failures": [str(d.result.error) for d in documents if d.result is not None and not d.compiled][:10],
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--tokenizer", default="typst-nano", help="directory of a tokenizer")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(path_or_name(args.tokenizer))
    results = ResultFile(args.output, args.overwrite, tokenizer=Path(args.tokenizer).name, max_tokens=args.tokens)
    with Typesetter() as typesetter:
        for contract in (None, style_contract(typesetter)):
            generator = Generator(random_model(tokenizer), tokenizer, typesetter=typesetter, contracts={None: contract})
            trial = {"contract": contract is not None, **measure(generator, args.documents, args.tokens)}
            print(json.dumps(trial))
            results.add(trial)


if __name__ == "__main__":
    main()
