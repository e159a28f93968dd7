"""What the benchmarks share: trials in separate processes, result files, and a fit on random tokens."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from typst_lit.manifest import check_output, write_output

OUTPUT_HINT = "Use another output, or --overwrite to replace it."
GIB = 2**30
RESULT = "trial result: "  # starts the line of a process's output that has its result


def run_trial(module: str, options: Mapping[str, Any], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs ``python -m module --trial OPTIONS`` and returns the result that it prints.

    Running out of memory is a result, ``{"out_of_memory": True}``, also where the system kills the process. Of a
    process that fails otherwise, ``{"error": ...}`` has the last line that it printed.
    """
    (result,) = run_ranks(module, options, 0, env)
    return result


def run_ranks(
    module: str, options: Mapping[str, Any], world_size: int, env: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """As `run_trial`, on each rank of a process group; a world size of 0 starts one process without a group.

    Returns the results of all ranks; where a rank fails or runs out of memory, only its result.
    """
    command = [sys.executable, "-m"]
    if world_size:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size), "-m"]
    command += [module, "--trial", json.dumps(options)]
    environment = {"THP_MEM_ALLOC_ENABLE": "1", **os.environ, **(env or {})}  # as the command line starts a fit
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    results = [dict(json.loads(line.partition(RESULT)[2])) for line in process.stdout.splitlines() if RESULT in line]
    if process.returncode in (-9, 137) or any("out_of_memory" in result for result in results):
        return [{"out_of_memory": True}]
    if process.returncode or len(results) != max(1, world_size):
        return [{"error": (process.stderr.strip().splitlines() or ["it printed nothing"])[-1]}]
    return results


def is_trial(args: Sequence[str], trial: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Where `run_trial` started this process, runs the trial and prints its result; returns whether it did."""
    if list(args[:1]) != ["--trial"]:
        return False
    from typst_lit.model.oom import is_out_of_memory

    try:
        result = trial(json.loads(args[1]))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        result = {"out_of_memory": True}
    print(f"{RESULT}{json.dumps(result)}", flush=True)
    return True


def environment() -> dict[str, Any]:
    """Returns the machine, the device and the versions that figures were measured with."""
    versions = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "lightning", "trl"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": versions,
    }


class ResultFile:
    """A JSON file of trials. It is written after each of them, so that a benchmark that is interrupted loses none.

    Args:
        output: path of the file; its suffix becomes ``.json``.
        overwrite: whether to replace a file of the user.
        header: what describes all trials.

    Raises:
        UserError: when the file belongs to the user.
    """

    def __init__(self, output: Path, overwrite: bool = False, **header: Any) -> None:
        self.path = output.with_suffix(".json")
        check_output(self.path, overwrite, hint=OUTPUT_HINT)
        self.overwrite = overwrite
        self.header = {**environment(), **header}
        self.trials: list[dict[str, Any]] = []

    def add(self, trial: dict[str, Any]) -> None:
        """Appends a trial."""
        self.trials.append(trial)
        write_json(self.path, {**self.header, "trials": self.trials}, self.overwrite)


def write_json(path: Path, content: Any, overwrite: bool = False) -> None:
    """Writes indented JSON, and the directory that it belongs into; see `write_output` of typst_lit."""
    write_output(path, (json.dumps(content, indent=2) + "\n").encode(), overwrite, hint=OUTPUT_HINT)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with a benchmark's docstring as its help, and the result file as its first argument."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="result file, without its suffix")
    parser.add_argument("--overwrite", action="store_true", help="replace files that another program wrote")
    return parser


def add_fit_arguments(parser: argparse.ArgumentParser, batch: Sequence[int], policy: Sequence[str]) -> None:
    """Adds the settings of fits on random tokens, each with one or more values, for `fit_options`.

    Args:
        parser: the parser to add them to.
        batch: default batch sizes.
        policy: default policies of activation checkpointing.
    """
    parser.add_argument("model", help="directory of the base model")
    parser.add_argument("--batch", type=int, nargs="+", default=list(batch))
    parser.add_argument("--length", type=int, nargs="+", default=[2048], help="tokens per row")
    parser.add_argument("--rank", type=int, nargs="+", default=[16], help="rank of the LoRA adapter")
    parser.add_argument("--policy", nargs="+", default=list(policy), help="gradient_checkpointing")
    parser.add_argument("--use-4bit", nargs="+", default=["true"], choices=["true", "false"])
    parser.add_argument("--limit-gib", type=float, help="GPU memory to use, in the precision of a T4")


def fit_options(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the options of one fit for each combination of the values of `add_fit_arguments`."""
    for batch, length, rank, policy, use_4bit in itertools.product(
        args.batch, args.length, args.rank, args.policy, args.use_4bit
    ):
        yield {
            "model": args.model, "batch": batch, "length": length, "rank": rank, "policy": policy,
            "use_4bit": use_4bit == "true", "limit_gib": args.limit_gib,
        }  # fmt: skip


def limit_memory(gib: float | None) -> None:
    """Limits the GPU memory of this process to that of a smaller card."""
    if gib and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gib * GIB / torch.cuda.get_device_properties(0).total_memory)


def precision(options: Mapping[str, Any]) -> str:
    """Returns the trainer's precision: the default of the device, or that of a T4 where memory is limited."""
    from typst_lit.cli.fit import default_precision

    if options.get("limit_gib") and torch.cuda.is_available():
        return "16-mixed"
    return str(default_precision("auto")["precision"])


def fit_on_random_tokens(options: Mapping[str, Any], num_steps: int, callbacks: Sequence[Any] = ()) -> None:
    """Fits a LoRA adapter on random tokens with `TypstModule`.

    Args:
        options: those of `fit_options`; and optionally ``packed`` (documents per row), ``compile``, ``liger``,
            ``peft_lora`` (PEFT's LoRA forward pass instead of the fused one) and ``world_size``.
        num_steps: optimizer steps, each with one batch.
        callbacks: callbacks of the trainer.
    """
    from lightning.pytorch import Trainer
    from peft import LoraConfig
    from torch.utils.data import DataLoader

    from typst_lit.data.batching import Batch, PackingCollator
    from typst_lit.data.encoding import Example
    from typst_lit.model import preparation
    from typst_lit.model.module import TypstModule

    if options.get("peft_lora"):
        preparation.fuse_lora_forward = lambda model: None
    batch, length, packed = options["batch"], options["length"], options.get("packed") or 0
    generator = torch.Generator().manual_seed(0)

    def random_batch(_: object) -> Batch:
        ids = torch.randint(0, 1000, (batch, length), generator=generator)
        if not packed:
            return Batch(ids, ids.clone(), [length] * batch, [0] * batch, ["random"] * batch)
        documents = ids.reshape(batch * packed, length // packed).tolist()
        return PackingCollator()([Example(document, document, 0, "random") for document in documents])

    rank, world_size = options["rank"], options.get("world_size", 1)
    module = TypstModule(
        options["model"], use_4bit=options["use_4bit"], gradient_checkpointing=options["policy"],
        adapter=LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="attention+mlp"),
        compile=bool(options.get("compile")), liger=bool(options.get("liger")),
    )  # fmt: skip
    trainer = Trainer(
        max_steps=num_steps, accelerator="auto", devices=world_size, strategy="ddp" if world_size > 1 else "auto",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=list(callbacks), precision=precision(options),
    )  # fmt: skip
    loader: Any = DataLoader(range(num_steps), batch_size=1, collate_fn=random_batch)
    trainer.fit(module, loader)
