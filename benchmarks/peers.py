"""The same fit by typst_lit, by TRL's SFTTrainer and by a plain Trainer script: tokens per second, and memory.

    python -m benchmarks.peers OUTPUT RECORDS.json MODEL_DIR [--records 8] [--batch 2] [--max-length 2048]
                               [--checkpointing true] [--runs 2] [--trainers typst_lit trl plain]

All use the same base model in 4 bits, the same records that fit the length, LoRA r 16 on attention and MLP, loss on the
completions, one epoch, and precision by device. Each run is a separate process, and the trainers alternate.
`typst_lit` pads batches of similar length, or packs with `--packing`; `trl` has its best settings for the device:
samples grouped by length, its loss without full logits, and with `--packing` packing too where flash_attn is installed;
`plain` pads every sample to the maximum length and computes all logits, as the guide does. Each sees the samples in a
different order; that they learn the same shows in the loss on all of them before and after, computed in one way for
all. Writes OUTPUT.json and prints the table.

It needs `pip install trl`, and for a model of random weights `python -m benchmarks.random_qwen3`.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.harness import GIB, ResultFile, argument_parser, is_trial, run_trial

LEARNING_RATE = 1e-3
Pair = dict[str, Any]


class Fitted(NamedTuple):
    """The outcome of a run.

    Attributes:
        seconds: the time of all steps.
        losses: the loss of each step.
        model: the fitted PEFT model.
    """

    seconds: float
    losses: list[float]
    model: Any


def rendered(pair: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the texts of prompt and completion."""
    from typst_lit.data.prompts import ReportPrompt

    return ReportPrompt().render(pair["input"]), pair["output"]


def fitting_pairs(options: Mapping[str, Any], tokenizer: Any) -> list[Pair]:
    """Returns the first pairs that fit the maximum length."""
    from typst_lit.data.sources import FileSource

    pairs = (row.value for row in FileSource(options["path"]).rows())
    fitting = (pair for pair in pairs if len(tokenizer("".join(rendered(pair))).input_ids) < options["max_length"])
    return list(itertools.islice(fitting, options["records"]))


def fit_typst_lit(options: Mapping[str, Any], pairs: Sequence[Pair]) -> Fitted:
    """Fits with this project."""
    from lightning.pytorch import Callback, Trainer
    from peft import LoraConfig

    from typst_lit.cli.trainer import default_precision
    from typst_lit.data.datamodule import TypstDataModule
    from typst_lit.data.sources import RecordSource, Row
    from typst_lit.model.module import TypstModule

    class PairSource(RecordSource):
        def rows(self) -> Iterator[Row]:
            for index, pair in enumerate(pairs):
                yield Row(f"record {index}", pair)

        def fingerprint(self) -> str:
            return json.dumps(options)

    class StepTimer(Callback):
        start = 0.0
        seconds = 0.0

        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.losses.append(float(trainer.callback_metrics["train_loss"]))

        def on_train_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    timer = StepTimer()
    module = TypstModule(
        options["model"], learning_rate=LEARNING_RATE, schedule="constant", warmup_steps=0, weight_decay=0.0,
        gradient_checkpointing="full" if options["checkpointing"] else "none",
        adapter=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="attention+mlp"),
    )  # fmt: skip
    data = TypstDataModule(
        source=PairSource(), val_fraction=0, batch_size=options["batch"], max_length=options["max_length"],
        packing=options["packing"], overlength="error",
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, callbacks=[timer],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, use_distributed_sampler=False,
        **default_precision("auto"),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return Fitted(timer.seconds, timer.losses, module.model)


def has_flash_attention() -> bool:
    """Returns whether flash_attn can be used: packing without cross-contamination needs it in TRL."""
    return torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


def load_base_model(options: Mapping[str, Any], attention: str = "sdpa") -> Any:
    """Returns the base model in 4 bits, as transformers and bitsandbytes load it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        options["model"], quantization_config=quantization, dtype=dtype, device_map={"": device},
        attn_implementation=attention,
    )  # fmt: skip


def lora_config() -> Any:
    """Returns the adapter of the peers: as that of `fit_typst_lit`, with the names of the target modules."""
    from peft import LoraConfig

    target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=target_modules, task_type="CAUSAL_LM")


def training_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of transformers' TrainingArguments that the peers share."""
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": options["scratch"], "num_train_epochs": 1, "per_device_train_batch_size": options["batch"],
        "gradient_accumulation_steps": 1, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "max_grad_norm": 1.0, "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "use_cpu": not on_gpu, "bf16": on_gpu, "gradient_checkpointing": options["checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False}, "disable_tqdm": True,
    }  # fmt: skip


def train(trainer: Any) -> Fitted:
    """Trains with a Trainer of transformers or TRL."""
    trainer.train()
    history = trainer.state.log_history
    seconds = next(entry["train_runtime"] for entry in history if "train_runtime" in entry)
    return Fitted(float(seconds), [float(entry["loss"]) for entry in history if "loss" in entry], trainer.model)


def fit_trl(options: Mapping[str, Any], pairs: Sequence[Pair]) -> Fitted:
    """Fits with TRL."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    flash = has_flash_attention()
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in map(rendered, pairs)]
    config = SFTConfig(
        **training_arguments(options), max_length=options["max_length"], completion_only_loss=True,
        packing=flash and options["packing"], train_sampling_strategy="group_by_length",
    )  # fmt: skip
    return train(
        SFTTrainer(
            model=load_base_model(options, "flash_attention_2" if flash else "sdpa"),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(options["model"]),
            peft_config=lora_config(),
        )
    )


def fit_plain(options: Mapping[str, Any], pairs: Sequence[Pair]) -> Fitted:
    """Fits with a Trainer on samples that are padded to the maximum length."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    rows = []
    for prompt, completion in map(rendered, pairs):
        prompt_length = len(tokenizer(prompt).input_ids)
        ids = [*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]
        padding = options["max_length"] - len(ids)
        rows.append(
            {
                "input_ids": ids + [tokenizer.pad_token_id or tokenizer.eos_token_id] * padding,
                "attention_mask": [1] * len(ids) + [0] * padding,
                "labels": [-100] * prompt_length + ids[prompt_length:] + [-100] * padding,
            }
        )
    model = prepare_model_for_kbit_training(
        load_base_model(options), options["checkpointing"], gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    arguments = TrainingArguments(**training_arguments(options))
    return train(Trainer(model=get_peft_model(model, lora_config()), args=arguments, train_dataset=rows))


TRAINERS: dict[str, Callable[[Mapping[str, Any], Sequence[Pair]], Fitted]] = {
    "typst_lit": fit_typst_lit,
    "trl": fit_trl,
    "plain": fit_plain,
}


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Fits with one trainer in this process."""
    from transformers import AutoTokenizer

    from typst_lit.callbacks.memory_profiler import MemoryMeter
    from typst_lit.data.encoding import Encoder
    from typst_lit.data.prompts import ReportPrompt
    from typst_lit.exporting.comparison import mean_loss

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    pairs = fitting_pairs(options, tokenizer)
    tokens = sum(len(tokenizer("".join(rendered(pair))).input_ids) + 1 for pair in pairs)
    meter = MemoryMeter(device)
    meter.reset()
    fitted = TRAINERS[options["trainer"]](options, pairs)
    peak_gib = meter.peak()[0] / GIB
    model = fitted.model.to(device).eval()  # Lightning moves it to the CPU when the fit ends
    encoder = Encoder(tokenizer, ReportPrompt())
    after = mean_loss(model, encoder, pairs)
    with model.disable_adapter():
        before = mean_loss(model, encoder, pairs)
    return {
        "tokens": tokens, "seconds": fitted.seconds, "tokens_per_s": tokens / fitted.seconds, "peak_gib": peak_gib,
        "losses": fitted.losses, "before": before, "after": after,
    }  # fmt: skip


def table(trials: Sequence[Mapping[str, Any]]) -> str:
    """Returns the medians of each trainer as a Markdown table."""
    lines = [
        "| | tokens/s | typst_lit to it | peak GiB | typst_lit to it | loss before, after |",
        "|---|---|---|---|---|---|",
    ]
    measured = [trial for trial in trials if "tokens_per_s" in trial]
    medians = {
        name: {
            key: statistics.median(trial[key] for trial in measured if trial["trainer"] == name)
            for key in ("tokens_per_s", "peak_gib")
        }
        for name in dict.fromkeys(trial["trainer"] for trial in measured)
    }
    for name, values in medians.items():
        first = next(trial for trial in measured if trial["trainer"] == name)
        speed = memory = ""
        if "typst_lit" in medians:
            speed = f"{medians['typst_lit']['tokens_per_s'] / values['tokens_per_s']:.2f}"
            memory = f"{medians['typst_lit']['peak_gib'] / values['peak_gib']:.2f}"
        lines.append(
            f"| {name} | {values['tokens_per_s']:.1f} | {speed} | {values['peak_gib']:.2f} | {memory} | "
            f"{first['before']:.4f}, {first['after']:.4f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    if is_trial(argv, trial):
        return
    parser = argument_parser(__doc__)
    parser.add_argument("path", help="pairs of record and Typst source")
    parser.add_argument("model", help="directory of the base model")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--checkpointing", type=json.loads, default=True)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS), choices=list(TRAINERS))
    args = parser.parse_args(argv)
    options = {key: value for key, value in vars(args).items() if key not in ("output", "runs", "trainers")}
    options["scratch"] = str(args.output.parent / f"{args.output.name}-scratch")
    arguments = {key: value for key, value in options.items() if key not in ("path", "model", "scratch")}
    results = ResultFile(args.output, args.overwrite, arguments=arguments)
    for run in range(args.runs):
        for name in args.trainers:
            env = {} if name == "typst_lit" else {"THP_MEM_ALLOC_ENABLE": "0"}  # the default of torch
            result = run_trial("benchmarks.peers", {**options, "trainer": name}, env)
            results.add({"trainer": name, **result})
            print(f"run {run + 1}: {results.trials[-1]}", file=sys.stderr)
    print(table(results.trials))


if __name__ == "__main__":
    main(sys.argv[1:])
