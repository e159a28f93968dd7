"""The same fit by this project, by TRL's SFTTrainer and by a plain Trainer script: tokens a second, and memory.

    python -m benchmarks.peers OUTPUT RECORDS.json MODEL_DIR [--records 8] [--batch 2] [--max-length 2048]
                               [--checkpointing true] [--runs 2] [--who ours trl plain]

The same base model in 4 bits, the same records that fit the length, LoRA r 16 on attention and MLP, loss on the
completions, one epoch, precision by device. Every run is a process of its own, and they take turns. `ours` pads to
batches of similar length, or packs with `--packing`; `trl` has its best settings for the device: samples grouped by
length, its loss without full logits, and with `--packing` packing too where flash_attn is installed; `plain` pads every
sample to the maximum length and computes all logits, as the usual guide does. Each sees the samples in an order of its
own; that they learn the same is seen from the loss on all of them before and after, computed in one way for all. Writes
OUTPUT.json and prints the table.

It needs `pip install trl`, and for a model of random weights `python -m benchmarks.random_qwen3`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness import GIB, about, answered, in_a_process
from typst_lit.data.encoding import IGNORE_INDEX
from typst_lit.model.losses import chunked_cross_entropy

RATE = 1e-3
WHO = ("ours", "trl", "plain")


def texts(path: str, tokenizer: Any, longest: int, count: int) -> list[tuple[str, str]]:
    """Returns prompt and completion of the first records that fit."""
    from typst_lit.data.prompts import ReportPrompt
    from typst_lit.data.sources import FileSource

    found = []
    for row in FileSource(path).rows():
        pair = ReportPrompt().render(row.value["input"]), row.value["output"]
        if len(tokenizer("".join(pair)).input_ids) < longest:
            found.append(pair)
    return found[:count]


class Fitted(NamedTuple):
    """What a run gives: its seconds, the loss of each step, and the model."""

    seconds: float
    losses: list[float]
    model: Any


def loss_on(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Returns the mean loss of the completions' tokens, the same way whoever fitted the model."""
    base = model.get_base_model()
    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for prompt, completion in pairs:
            ids = [*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]
            labels = torch.tensor([ids], device=model.device)
            hidden = base.get_decoder()(input_ids=labels, use_cache=False)[0]
            labels = labels.clone()
            labels[:, : len(tokenizer(prompt).input_ids)] = IGNORE_INDEX
            loss, tokens = chunked_cross_entropy(hidden, labels, base.get_output_embeddings())
            total, count = total + float(loss), count + int(tokens)
    return total / count


def ours(options: dict[str, Any]) -> Fitted:
    """Fits by this project."""
    from lightning.pytorch import Callback, Trainer
    from peft import LoraConfig

    from typst_lit.cli.fit import default_precision
    from typst_lit.data.datamodule import TypstDataModule
    from typst_lit.data.sources import RecordSource, Row
    from typst_lit.model.module import TypstModule

    records = json.loads(Path(options["path"]).read_text("utf-8"))

    class Chosen(RecordSource):
        def rows(self) -> Any:
            tokenizer = module.tokenizer
            fitting = {output for _, output in texts(
                options["path"], tokenizer, options["max_length"], options["records"])}  # fmt: skip
            for place, value in enumerate(records):
                if value["output"] in fitting:
                    yield Row(f"record {place}", value)

        def fingerprint(self) -> str:
            return json.dumps(options)

    class Clock(Callback):
        began = 0.0
        seconds = 0.0

        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_train_start(self, *_: Any) -> None:
            self.began = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.losses.append(float(trainer.callback_metrics["train_loss"]))

        def on_train_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.began

    clock = Clock()
    module = TypstModule(
        options["model"], learning_rate=RATE, schedule="constant", weight_decay=0.0,
        gradient_checkpointing="full" if options["checkpointing"] else "none",
        adapter=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="attention+mlp"),
    )  # fmt: skip
    data = TypstDataModule(
        source=Chosen(), val_fraction=0, batch_size=options["batch"], max_length=options["max_length"],
        packing=options["packing"], overlength="error",
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, callbacks=[clock],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, use_distributed_sampler=False,
        **default_precision("auto"),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return Fitted(clock.seconds, clock.losses, module.model)


def _has_flash() -> bool:
    return torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


def _model(options: dict[str, Any], dtype: torch.dtype, attention: str = "sdpa") -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        options["model"], dtype=dtype, device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        attn_implementation=attention,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
    )  # fmt: skip


def _lora() -> Any:
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "output_dir": options["scratch"], "num_train_epochs": 1, "per_device_train_batch_size": options["batch"],
        "gradient_accumulation_steps": 1, "learning_rate": RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": not cuda,
        "bf16": cuda, "gradient_checkpointing": options["checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False}, "disable_tqdm": True,
    }  # fmt: skip


def _timed(trainer: Any) -> Fitted:
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = next(entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry)
    return Fitted(float(seconds), [float(loss) for loss in losses], trainer.model)


def trl(options: dict[str, Any]) -> Fitted:
    """As `ours`, by TRL."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    cuda, flash = torch.cuda.is_available(), _has_flash()
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    pairs = texts(options["path"], tokenizer, options["max_length"], options["records"])
    rows = Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in pairs])
    config = SFTConfig(
        **_arguments(options), max_length=options["max_length"], completion_only_loss=True,
        packing=flash and options["packing"], train_sampling_strategy="group_by_length",
    )  # fmt: skip
    model = _model(options, torch.bfloat16 if cuda else torch.float32, "flash_attention_2" if flash else "sdpa")
    return _timed(
        SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=_lora())
    )


def plain(options: dict[str, Any]) -> Fitted:
    """As `ours`, by a Trainer on samples that are padded to the maximum length."""
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    longest = options["max_length"]
    rows = []
    for prompt, completion in texts(options["path"], tokenizer, longest, options["records"]):
        before = len(tokenizer(prompt).input_ids)
        ids = [*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]
        rest = longest - len(ids)
        rows.append(
            {
                "input_ids": ids + [tokenizer.pad_token_id or tokenizer.eos_token_id] * rest,
                "attention_mask": [1] * len(ids) + [0] * rest,
                "labels": [-100] * before + ids[before:] + [-100] * rest,
            }
        )
    model = _model(options, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model = prepare_model_for_kbit_training(
        model, options["checkpointing"], gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    trainer = Trainer(
        model=get_peft_model(model, _lora()), args=TrainingArguments(**_arguments(options)), train_dataset=rows
    )
    return _timed(trainer)


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Runs one of them in this process."""
    from transformers import AutoTokenizer

    from typst_lit.callbacks.memory_profiler import MemoryMeter

    run: Callable[[dict[str, Any]], Fitted] = globals()[options["who"]]
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    pairs = texts(options["path"], tokenizer, options["max_length"], options["records"])
    tokens = sum(len(tokenizer("".join(pair)).input_ids) + 1 for pair in pairs)
    meter = MemoryMeter(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    meter.reset()
    fitted = run(options)
    peak = meter.peak()[0] / GIB
    after = loss_on(fitted.model, tokenizer, pairs)
    with fitted.model.disable_adapter():
        before = loss_on(fitted.model, tokenizer, pairs)
    return {
        "who": options["who"], "tokens": tokens, "seconds": fitted.seconds, "tokens_per_s": tokens / fitted.seconds,
        "peak_gib": peak, "losses": fitted.losses, "before": before, "after": after,
    }  # fmt: skip


def main(args: Sequence[str]) -> None:
    if answered(args, trial):
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("path", help="pairs of record and Typst source")
    parser.add_argument("model", help="folder of the base model")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--checkpointing", type=json.loads, default=True)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--who", nargs="+", default=list(WHO), choices=WHO)
    given = parser.parse_args(args)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    options = {key: value for key, value in vars(given).items() if key not in ("output", "runs", "who")}
    trials = []
    for number in range(given.runs):
        for who in given.who:
            scratch = str(given.output.parent / f"{given.output.name}-scratch")
            trials.append({"who": who, **in_a_process("benchmarks.peers", {**options, "who": who, "scratch": scratch})})
            print(f"run {number + 1}: {trials[-1]}", file=sys.stderr)
    measured = {who: [trial for trial in trials if trial["who"] == who and "losses" in trial] for who in given.who}
    middle = {
        who: {key: statistics.median(t[key] for t in found) for key in ("tokens_per_s", "peak_gib")}
        for who, found in measured.items()
        if found
    }
    base = middle.get("ours")
    print("| | tokens/s | ours to it | peak GiB | ours to it | loss before, after |\n|---|---|---|---|---|---|")
    for who, values in middle.items():
        first = measured[who][0]
        fast, small = (
            (f"{base['tokens_per_s'] / values['tokens_per_s']:.2f}", f"{base['peak_gib'] / values['peak_gib']:.2f}")
            if base
            else ("", "")
        )
        print(
            f"| {who} | {values['tokens_per_s']:.1f} | {fast} | {values['peak_gib']:.2f} | {small} | "
            f"{first['before']:.4f}, {first['after']:.4f} |"
        )
    arguments = {key: value for key, value in options.items() if key not in ("path", "model")}
    given.output.with_suffix(".json").write_text(
        json.dumps({**about(), "arguments": arguments, "trials": trials}, indent=2) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
