"""How fast many records are read, checked, tokenized and split, how much memory that takes, and what the cache saves.

    python -m benchmarks.data OUTPUT TOKENIZER [--records 1000000] [--processes 2]

The records are synthetic chapters, each with a unique title. Three trials run one after the other, each in a separate
process: the tokenizer alone on the same texts, with as many processes; the data module with an empty cache; and the
data module again, with the cache. Memory is that of the whole process tree, sampled four times per second, with shared
pages counted once (PSS): `anonymous` is memory that only these processes use; `resident` includes mapped pages of
files, which the system can reclaim at any time. Writes OUTPUT.json and prints it.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import GIB, argument_parser, is_trial, run_trial, write_json
from benchmarks.nano.source import SyntheticReports
from typst_lit.data.sources import RecordSource, Row

NUM_CHAPTERS = 500  # that are generated; each record has one of them, under a unique title
NUM_BARE_RECORDS = 20_000  # for the tokenizer alone
TOKENIZER_BATCH = 200


class ManyReports(RecordSource):
    """Any number of records.

    Args:
        count: number of records.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self) -> Iterator[Row]:
        chapters = [row.value for row in SyntheticReports(NUM_CHAPTERS, seed=1).rows()]
        for index in range(self.count):
            pair = chapters[index % NUM_CHAPTERS]
            yield Row(f"record {index}", {**pair, "input": {**pair["input"], "project_title": f"Project {index}"}})

    def fingerprint(self) -> str:
        return f"many {self.count}"


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children, in bytes, and stores the maximum."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.resident = 0
        self.start()

    def run(self) -> None:
        process = psutil.Process()
        while True:
            anonymous = resident = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    status = Path(f"/proc/{member.pid}/smaps_rollup").read_text()
                except OSError:  # it has just ended
                    continue
                sizes = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Pss")}
                anonymous += int(sizes.get("Pss_Anon", 0)) * 1024
                resident += int(sizes.get("Pss", 0)) * 1024
            self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)
            time.sleep(0.25)


def load(tokenizer_name: str, count: int, num_proc: int) -> dict[str, Any]:
    """Loads the records as `fit` does, and takes the first batches."""
    from lightning.pytorch import Trainer
    from transformers import AutoTokenizer

    from typst_lit.data.datamodule import TypstDataModule

    memory, start = PeakMemory(), time.perf_counter()
    data = TypstDataModule(source=ManyReports(count), num_proc=num_proc, val_fraction=0.01, group_by="none")
    data.tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.load("fit")
    loaded = time.perf_counter() - start
    batches = iter(data.train_dataloader())
    tokens = sum(sum(next(batches).lengths) for _ in range(10)) / 40 * count
    return {
        "seconds": loaded, "to_first_batches": time.perf_counter() - start, "records_per_s": count / loaded,
        "tokens": round(tokens), "anonymous_gib": memory.anonymous / GIB, "resident_gib": memory.resident / GIB,
    }  # fmt: skip


def _tokenize(tokenizer_name: str, texts: Sequence[str]) -> float:
    """Tokenizes texts in batches; returns the seconds that it took."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    start = time.perf_counter()
    for first in range(0, len(texts), TOKENIZER_BATCH):
        tokenizer(texts[first : first + TOKENIZER_BATCH])
    return time.perf_counter() - start


def tokenize_only(tokenizer_name: str, count: int, num_proc: int) -> dict[str, Any]:
    """Only tokenizes the texts: the upper bound of the data module's throughput."""
    from typst_lit.data.prompts import ReportPrompt

    prompt = ReportPrompt()
    rows = ManyReports(min(count, NUM_BARE_RECORDS)).rows()
    texts = [prompt.render(row.value["input"]) + row.value["output"] for row in rows]
    with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
        arguments = [(tokenizer_name, texts[index::num_proc]) for index in range(num_proc)]
        seconds = max(pool.starmap(_tokenize, arguments))
    return {"records": len(texts), "seconds": seconds, "records_per_s": len(texts) / seconds}


def trial(options: dict[str, Any]) -> dict[str, Any]:
    """Runs one of the three trials in this process."""
    run = tokenize_only if options["trial"] == "bare" else load
    return run(options["tokenizer"], options["records"], options["processes"])


def main(argv: Sequence[str]) -> None:
    if is_trial(argv, trial):
        return
    parser = argument_parser(__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    result: dict[str, Any] = {
        "records": args.records,
        "processes": args.processes,
        "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        "versions": {name: version(name) for name in ("datasets", "transformers", "tokenizers")},
    }
    options = {"tokenizer": args.tokenizer, "records": args.records, "processes": args.processes}
    with tempfile.TemporaryDirectory() as cache:
        env = {"HF_DATASETS_CACHE": cache, "TOKENIZERS_PARALLELISM": "false"}
        for name in ("bare", "first", "again"):
            result[name] = run_trial("benchmarks.data", {"trial": name, **options}, env)
            print(name, result[name], file=sys.stderr)
            write_json(args.output.with_suffix(".json"), result, args.overwrite)
        result["cache_gib"] = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file()) / GIB
    if all("records_per_s" in result[name] for name in ("bare", "first")):
        result["to_bare"] = result["first"]["records_per_s"] / result["bare"]["records_per_s"]
    write_json(args.output.with_suffix(".json"), result, args.overwrite)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
