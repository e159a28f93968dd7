"""How fast documents are decoded: with drafts, without, and by transformers' own generate and prompt lookup.

    python -m benchmarks.decoding OUTPUT RECORDS.json --base-model MODEL [--adapter DIR] [--records 6] [--batch 1 8]

Greedy, so that all ways must give the same documents, which is checked. Each way decodes the same records, one way
after the other, `--repeats` times in turn; the median counts. `draft` begins with an empty shelf, so that its first
document has only its record to copy from. Writes OUTPUT.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from typst_lit.data.sources import FileSource
from typst_lit.inference.decoder import Decoder, eos_token_ids
from typst_lit.inference.engine import Engine
from typst_lit.inference.generator import Generator
from typst_lit.inference.request import Request
from typst_lit.inference.sampling import GenerationSettings


@dataclass
class Trial:
    """One way of decoding, at one batch size."""

    way: str
    batch: int
    tokens: int
    passes: int
    seconds: float
    same: int  # documents that are letter for letter those of transformers' generate, one at a time

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Counter:
    """Counts a model's forward passes."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        base = model.get_base_model() if isinstance(model, PeftModel) else model  # generate goes past a PeftModel
        base.register_forward_pre_hook(self._one_more)

    def _one_more(self, *_: Any) -> None:
        self.count += 1


def transformers_generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], most: int, batch: int, lookup: int | None = None
) -> list[list[int]]:
    """Returns the new ids of each prompt by transformers' own generate, in batches padded on the left."""
    pad = tokenizer.pad_token_id
    ends = eos_token_ids(model.generation_config, tokenizer)
    config = GenerationConfig(
        max_new_tokens=most, do_sample=False, eos_token_id=ends, pad_token_id=pad, repetition_penalty=1.0,
        prompt_lookup_num_tokens=lookup,
    )  # fmt: skip
    found = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in part], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=model.device)
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for row in output[:, width:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            found.append(row[: end + 1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("path", help="records")
    parser.add_argument("--base-model")
    parser.add_argument("--adapter")
    parser.add_argument("--use-4bit", action="store_true")
    parser.add_argument("--records", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=600)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--lookup", type=int, default=10, help="transformers' prompt_lookup_num_tokens")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    generator = Generator.load(args.adapter, args.base_model, args.use_4bit, compile=False)
    model, tokenizer = generator.model, generator.tokenizer
    records = [generator.check(row.value)[0] for row in FileSource(args.path).rows()][: args.records]
    prompts = generator.encoder().prompts(records)
    counter = Counter(model)
    settings = GenerationSettings(max_tokens=args.max_tokens, temperature=0, repetition_penalty=1.0)

    def ours(batch: int, draft: bool) -> list[tuple[str, int]]:
        chosen = replace(settings, prompt_lookup=draft)
        engine = Engine(Decoder(model, eos_token_ids(model.generation_config, tokenizer)), tokenizer, batch)
        completions = engine.complete([Request(prompt, chosen) for prompt in prompts])
        return [(completion.text, completion.tokens) for completion in completions]

    def theirs(batch: int, lookup: int | None = None) -> list[tuple[str, int]]:
        rows = transformers_generate(model, tokenizer, prompts, args.max_tokens, batch, lookup)
        texts = [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]
        return [(str(text), len(row)) for text, row in zip(texts, rows, strict=True)]

    expected = [text for text, _ in theirs(1)]
    trials = []
    for batch in args.batch:
        ways: dict[str, Callable[[], list[tuple[str, int]]]] = {
            "transformers generate": lambda batch=batch: theirs(batch),
            "transformers prompt lookup": lambda batch=batch: theirs(batch, args.lookup),
            "without drafts": lambda batch=batch: ours(batch, False),
            "with drafts": lambda batch=batch: ours(batch, True),
        }  # type: ignore[misc]
        if batch > 1:
            del ways["transformers prompt lookup"]  # it takes one prompt at a time
        measured: dict[str, list[Trial]] = {way: [] for way in ways}
        for _ in range(args.repeats):
            for way, call in ways.items():
                counter.count, began = 0, time.perf_counter()
                made = call()
                seconds = time.perf_counter() - began
                same = sum(text == wanted for (text, _), wanted in zip(made, expected, strict=True))
                tokens = sum(count for _, count in made)
                measured[way].append(Trial(way, batch, tokens, counter.count, seconds, same))
        for found in measured.values():
            middle = statistics.median(trial.seconds for trial in found)
            trials.append(min(found, key=lambda trial: abs(trial.seconds - middle)))
    print(f"| batch | way | tokens | passes | tokens a pass | tokens/s | to plain | same of {len(prompts)} |")
    print("|---|---|---|---|---|---|---|---|")
    for trial in trials:
        plain = next(t for t in trials if t.batch == trial.batch and t.way == "transformers generate")
        print(
            f"| {trial.batch} | {trial.way} | {trial.tokens} | {trial.passes} | "
            f"{trial.tokens / trial.passes:.2f} | {trial.tokens_per_s:.1f} | "
            f"{trial.tokens_per_s / plain.tokens_per_s:.2f} | {trial.same} |"
        )
    about = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        "arguments": {key: _name(value) for key, value in vars(args).items() if key != "output"},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(
        json.dumps({**about, "trials": [asdict(trial) for trial in trials]}, indent=2) + "\n", "utf-8"
    )


def _name(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) else value


if __name__ == "__main__":
    main()
