"""How fast many records are read, checked, tokenised and split, how much memory that takes, and what a cache saves.

    python -m benchmarks.data OUTPUT TOKENIZER [--records 1000000] [--processes 2]

The records are chapters of synthetic reports under titles of their own. Three processes, one after the other: the data
module with an empty cache, the same again, and the bare tokenizer on the same texts, with as many processes. Memory is
that of the whole tree of processes, four times a second, pages that several of them have counted once (PSS):
`anonymous` is what only they can have, `resident` has the mapped pages of files too, which the system takes back
whenever it likes. Writes OUTPUT.json and prints it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.nano.source import SyntheticReports
from typst_lit.data.sources import RecordSource, Row

GIB = 2**30
POOL = 500  # chapters that are written; each record has one of them, under a title of its own
BARE = 20_000  # records of the bare tokenizer's run


class ManyReports(RecordSource):
    """As many records as one likes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self) -> Iterator[Row]:
        pool = [row.value for row in SyntheticReports(POOL, seed=1).rows()]
        for place in range(self.count):
            pair = pool[place % POOL]
            yield Row(f"record {place}", {**pair, "input": {**pair["input"], "project_title": f"Project {place}"}})

    def fingerprint(self) -> str:
        return f"many {self.count}"


class Watch(threading.Thread):
    """Keeps the most memory that this process and its children have had."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.resident = 0
        self.start()

    def run(self) -> None:
        me = psutil.Process()
        while True:
            anonymous = resident = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    status = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                except OSError:  # it has just ended
                    continue
                sizes = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Pss")}
                anonymous += int(sizes.get("Pss_Anon", 0)) * 1024
                resident += int(sizes.get("Pss", 0)) * 1024
            self.anonymous, self.resident = max(self.anonymous, anonymous), max(self.resident, resident)
            time.sleep(0.25)


def load(tokenizer_name: str, count: int, processes: int) -> dict[str, Any]:
    """Loads the records as a fit does, and takes its first batches."""
    from lightning.pytorch import Trainer
    from transformers import AutoTokenizer

    from typst_lit.data.datamodule import TypstDataModule

    watch, began = Watch(), time.perf_counter()
    data = TypstDataModule(source=ManyReports(count), num_proc=processes, val_fraction=0.01, group_by="none")
    data.tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.load("fit")
    loaded = time.perf_counter() - began
    batches = iter(data.train_dataloader())
    tokens = sum(sum(next(batches).lengths) for _ in range(10)) / 40 * count
    return {
        "seconds": loaded, "to_first_batches": time.perf_counter() - began, "records_per_s": count / loaded,
        "tokens": round(tokens), "anonymous_gib": watch.anonymous / GIB, "resident_gib": watch.resident / GIB,
    }  # fmt: skip


def _texts(count: int) -> list[str]:
    from typst_lit.data.prompts import ReportPrompt

    prompt = ReportPrompt()
    return [prompt.render(row.value["input"]) + row.value["output"] for row in ManyReports(count).rows()]


def _tokenise(arguments: tuple[str, list[str]]) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments[0])
    began = time.perf_counter()
    for at in range(0, len(arguments[1]), 200):
        tokenizer(arguments[1][at : at + 200])
    return round(1e6 * (time.perf_counter() - began))


def bare(tokenizer_name: str, count: int, processes: int) -> dict[str, Any]:
    """Tokenises texts alone: the rate that there is to reach."""
    texts = _texts(min(count, BARE))
    parts = [(tokenizer_name, texts[number::processes]) for number in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        seconds = max(pool.map(_tokenise, parts)) / 1e6
    return {"records": len(texts), "seconds": seconds, "records_per_s": len(texts) / seconds}


def main(args: Sequence[str]) -> None:
    if args[:1] == ["--trial"]:
        what, tokenizer, count, processes = args[1], args[2], int(args[3]), int(args[4])
        print(json.dumps((bare if what == "bare" else load)(tokenizer, count, processes)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(args)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("bare", "first", "again"):
            call = [sys.executable, "-m", "benchmarks.data", "--trial", name, given.tokenizer, str(given.records)]
            done = subprocess.run(
                [*call, str(given.processes)], stdout=subprocess.PIPE, text=True, check=True,
                env={**os.environ, "HF_DATASETS_CACHE": cache, "TOKENIZERS_PARALLELISM": "false"},
            )  # fmt: skip
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, found[name], file=sys.stderr)
        found["cache_gib"] = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file()) / GIB
    found["to_bare"] = found["first"]["records_per_s"] / found["bare"]["records_per_s"]
    about = {
        "records": given.records, "processes": given.processes,
        "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        "versions": {name: version(name) for name in ("datasets", "transformers", "tokenizers")},
    }  # fmt: skip
    text = json.dumps({**about, **found}, indent=2)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.with_suffix(".json").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
