"""How fast documents are decoded: with and without speculative decoding, and by transformers' own generate.

    python -m benchmarks.decoding OUTPUT RECORDS.json --base-model MODEL [--adapter DIR] [--records 6] [--batch 1 8]

Decoding is greedy, so that all methods must give the same documents, which is checked. Each method decodes the same
records, one method after the other, `--repeats` times; the run of the median time counts. The draft corpus is empty at
the start, so that the first document has only its record to copy from. Writes OUTPUT.json and prints the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.harness import ResultFile, argument_parser
from typst_lit.data.sources import FileSource
from typst_lit.inference.decoder import Decoder, eos_token_ids
from typst_lit.inference.engine import Engine
from typst_lit.inference.generator import Generator
from typst_lit.inference.request import Request
from typst_lit.inference.settings import GenerationSettings
from typst_lit.model.adapters import base_model
from typst_lit.model.oom import is_out_of_memory

BASELINE = "transformers generate"


@dataclass
class Decoded:
    """The text of a document, and its number of tokens, including the EOS token."""

    text: str
    tokens: int


@dataclass
class Trial:
    """One method of decoding, at one batch size."""

    method: str
    batch: int
    tokens: int
    passes: int
    seconds: float
    same: int  # documents equal to those of transformers' generate, one document at a time

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class PassCounter:
    """Counts a model's forward passes."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        base_model(model).register_forward_pre_hook(self._increment)  # generate bypasses a PeftModel

    def _increment(self, *_: Any) -> None:
        self.count += 1


class Methods:
    """The methods of decoding, on the same prompts.

    Args:
        model: a model in evaluation mode, with or without an adapter.
        tokenizer: its tokenizer.
        prompts: the ids of each prompt.
        settings: how to decode; greedy.
        num_lookup_tokens: transformers' prompt_lookup_num_tokens.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[list[int]],
        settings: GenerationSettings,
        num_lookup_tokens: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.settings = settings
        self.num_lookup_tokens = num_lookup_tokens
        self.eos_token_ids = eos_token_ids(model.generation_config, tokenizer)

    def at(self, batch: int) -> dict[str, Callable[[], list[Decoded]]]:
        """Returns the methods at a batch size, by name."""
        methods: dict[str, Callable[[], list[Decoded]]] = {BASELINE: partial(self.transformers_generate, batch)}
        if batch == 1:  # transformers supports prompt lookup for one prompt only
            methods["transformers prompt lookup"] = partial(self.transformers_generate, 1, self.num_lookup_tokens)
        methods["without drafts"] = partial(self.engine, batch, False)
        methods["with drafts"] = partial(self.engine, batch, True)
        return methods

    def engine(self, batch: int, prompt_lookup: bool) -> list[Decoded]:
        """Decodes with this project's engine."""
        settings = replace(self.settings, prompt_lookup=prompt_lookup)
        engine = Engine(Decoder(self.model, self.eos_token_ids), self.tokenizer, batch)
        completions = engine.complete([Request(prompt, settings) for prompt in self.prompts])
        return [Decoded(completion.text, completion.tokens) for completion in completions]

    def transformers_generate(self, batch: int, num_lookup_tokens: int | None = None) -> list[Decoded]:
        """Decodes with transformers' generate, in batches padded on the left."""
        pad_id = self.tokenizer.pad_token_id
        config = GenerationConfig(
            max_new_tokens=self.settings.max_tokens, do_sample=False, eos_token_id=self.eos_token_ids,
            pad_token_id=pad_id, repetition_penalty=1.0, prompt_lookup_num_tokens=num_lookup_tokens,
        )  # fmt: skip
        decoded = []
        for start in range(0, len(self.prompts), batch):
            prompts = self.prompts[start : start + batch]
            width = max(map(len, prompts))
            ids = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
            mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=torch.tensor(ids, device=self.model.device),
                    attention_mask=torch.tensor(mask, device=self.model.device),
                    generation_config=config,
                )
            decoded += [self._until_eos(row) for row in output[:, width:].tolist()]
        return decoded

    def _until_eos(self, ids: list[int]) -> Decoded:
        end = next((index for index, token in enumerate(ids) if token in self.eos_token_ids), len(ids) - 1)
        text = self.tokenizer.decode(ids[: end + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Decoded(str(text), end + 1)


def measure(
    methods: Mapping[str, Callable[[], list[Decoded]]],
    batch: int,
    repeats: int,
    passes: PassCounter,
    expected: Sequence[Decoded],
) -> list[Trial | dict[str, Any]]:
    """Runs the methods in turns; returns the run of the median time of each, or that its memory ran out."""
    runs: dict[str, list[Trial]] = {method: [] for method in methods}
    failed = []
    for _ in range(repeats):
        for method, decode in methods.items():
            if method in failed:
                continue
            passes.count, start = 0, time.perf_counter()
            try:
                documents = decode()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failed.append(method)
                continue
            seconds = time.perf_counter() - start
            same = sum(document.text == other.text for document, other in zip(documents, expected, strict=True))
            tokens = sum(document.tokens for document in documents)
            runs[method].append(Trial(method, batch, tokens, passes.count, seconds, same))
    return [
        {"method": method, "batch": batch, "out_of_memory": True}
        if method in failed
        else sorted(trials, key=lambda trial: trial.seconds)[len(trials) // 2]
        for method, trials in runs.items()
    ]


def table(trials: Sequence[Trial | dict[str, Any]], num_documents: int) -> str:
    """Returns the trials as a Markdown table."""
    lines = [
        f"| batch | method | tokens | passes | tokens per pass | tokens/s | to plain | same of {num_documents} |",
        "|" + "---|" * 8,
    ]
    baselines = {trial.batch: trial for trial in trials if isinstance(trial, Trial) and trial.method == BASELINE}
    for trial in trials:
        if isinstance(trial, dict):
            lines.append(f"| {trial['batch']} | {trial['method']} | out of memory | | | | | |")
            continue
        baseline = baselines.get(trial.batch)
        ratio = f"{trial.tokens_per_s / baseline.tokens_per_s:.2f}" if baseline else ""
        lines.append(
            f"| {trial.batch} | {trial.method} | {trial.tokens} | {trial.passes} | "
            f"{trial.tokens / trial.passes:.2f} | {trial.tokens_per_s:.1f} | {ratio} | {trial.same} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argument_parser(__doc__)
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
    records = [generator.check(row.value)[0] for row in FileSource(args.path).rows()][: args.records]
    settings = GenerationSettings(max_tokens=args.max_tokens, temperature=0, repetition_penalty=1.0)
    prompts = generator.encoder().prompts(records)
    methods = Methods(generator.model, generator.tokenizer, prompts, settings, args.lookup)
    arguments = {
        key: Path(value).name if isinstance(value, str) else value
        for key, value in vars(args).items()
        if key != "output"
    }
    results = ResultFile(args.output, args.overwrite, arguments=arguments)
    passes = PassCounter(generator.model)
    expected = methods.transformers_generate(1)
    trials: list[Trial | dict[str, Any]] = []
    for batch in args.batch:
        for trial in measure(methods.at(batch), batch, args.repeats, passes, expected):
            trials.append(trial)
            results.add(trial if isinstance(trial, dict) else asdict(trial))
    print(table(trials, len(prompts)))


if __name__ == "__main__":
    main()
