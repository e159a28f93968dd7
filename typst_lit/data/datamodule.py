"""The data of a run: read, checked, split, tokenised, cut to length, and handed out in batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from typst_lit.data.batching import (
    Batch,
    Collator,
    DeterministicBatchSampler,
    LengthGroupedSampler,
    PackedSampler,
    PackingCollator,
    PromptBatch,
)
from typst_lit.data.encoding import Encoder, Example
from typst_lit.data.length_policy import LengthPolicy, Overlength
from typst_lit.data.lengths import LengthReport
from typst_lit.data.loader import WatchedLoader
from typst_lit.data.minhash import find_near_duplicates, minhash_signature
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.data.sources import RecordSource, open_source
from typst_lit.data.splitting import group_names, split_by_group
from typst_lit.data.table import cache_key, column, load_records, record_origins
from typst_lit.errors import UserError, listing

log = logging.getLogger(__name__)
ROWS_PER_PROCESS = 2000  # starting one more tokenising process pays from about here on
# Rows tokenised by the same processes: what they map of the table's file stays in their memory until they end, and what
# is done is not done again when a run is stopped meanwhile.
ROWS_PER_PART = 100_000


class TokenizedDataset(torch.utils.data.Dataset[Example]):
    """The tokenized rows of a table as examples."""

    def __init__(self, table: Dataset, completion_only_loss: bool) -> None:
        self.table = table
        self.completion_only_loss = completion_only_loss
        self.lengths = column(table, "length")

    def __len__(self) -> int:
        return len(self.table)

    def origin(self, index: int) -> str:
        """Returns where the record of an example stood."""
        return str(self.table[index]["origin"])

    def __getitem__(self, index: int) -> Example:
        row = self.table[index]
        return Example.from_ids(row["input_ids"], row["prompt_length"], row["origin"], self.completion_only_loss)


class Pair(NamedTuple):
    """A record with the Typst source that a person made of it, and where it stood."""

    origin: str
    fields: dict[str, Any]
    reference: str


class TypstDataModule(LightningDataModule):
    """Pairs of record and Typst source for training, records for prediction.

    Args:
        path: pairs to train on: a JSON list, one JSON object, JSON lines, Parquet, a folder of such files, or the name
            of a data set on the hub.
        val_path: pairs to validate on; without it a part of ``path`` is held out.
        test_path: pairs for the test command; without it the held-out ones.
        predict_path: records to generate documents for.
        source: where the pairs come from instead of ``path``: a plugin's RecordSource.
        template: how a record becomes a prompt, and which fields it has. By default that of the adapter in use, or
            else ReportPrompt.
        on_invalid: what to do about faulty records: stop and list them, or leave them out and count them.
        val_fraction: share of ``path`` to hold out; 0 for none.
        group_by: field whose values stay together on one side of the split; "auto" is project_title where there is
            more than one, "none" splits record by record.
        max_length: most tokens of a sample; "auto" covers all samples up to ``max_length_cap``.
        max_length_cap: the most that "auto" takes.
        overlength: what to do with samples that are longer: drop them; shorten the record's text in the prompt, so that
            the completion stays intact (truncate_text); cut the end of the completion, and the EOS token with it
            (truncate_completion); or stop and list them (error).
        completion_only_loss: learn the tokens of the completion only; false learns those of the prompt too.
        packing: fill rows of ``max_length`` tokens with whole samples, which don't see each other, instead of padding;
            ``batch_size`` then counts rows.
        batch_size: samples a step and device.
        eval_batch_size: samples a validation step or records generated together; by default ``batch_size``.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        worker_timeout: seconds to wait for a batch of such a process before the run stops; 0 waits for ever.
        num_proc: processes that tokenise; by default as many as the cores and the data are worth.
        cache_dir: where the tables are kept; by default the cache of the datasets library.
        seed: decides split and order.
    """

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        predict_path: str | None = None,
        source: RecordSource | None = None,
        template: PromptTemplate | None = None,
        on_invalid: Literal["error", "skip"] = "error",
        val_fraction: float = 0.1,
        group_by: str = "auto",
        max_length: int | Literal["auto"] = "auto",
        max_length_cap: int = 8192,
        overlength: Overlength = "drop",
        completion_only_loss: bool = True,
        packing: bool = False,
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        worker_timeout: float = 600.0,
        num_proc: int | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction must be at least 0 and below 1, not {val_fraction}.")
        for name, value in (
            ("max_length", max_length), ("max_length_cap", max_length_cap), ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size), ("num_proc", num_proc),
        ):  # fmt: skip
            if isinstance(value, int) and value < 1:
                raise UserError(f"data.{name} must be 1 or more, not {value}.")
        if num_workers < 0 or worker_timeout < 0:
            raise UserError("data.num_workers and data.worker_timeout must be 0 or more.")
        self.path = path
        self.val_path = val_path
        self.test_path = test_path
        self.predict_path = predict_path
        self.source = source
        self.template = template
        self.on_invalid = on_invalid
        self.val_fraction = val_fraction
        self.group_by = group_by
        self.max_length = max_length
        self.max_length_cap = max_length_cap
        self.overlength = overlength
        self.completion_only_loss = completion_only_loss
        self.packing = packing
        self.batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.worker_timeout = worker_timeout
        self.num_proc = num_proc
        self.cache_dir = cache_dir
        self.seed = seed
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.length_limit: int | None = None  # what max_length came to, once the data is set up
        self.predict_start = 0  # records at the front that need no prediction any more
        self._tables: dict[str, Dataset] = {}
        self._resume_from = (0, 0)
        self._resume_order: str | None = None

    @property
    def eval_batch_size(self) -> int:
        """Samples of a validation step: as asked for, or as many as are trained on at once."""
        return self._eval_batch_size or self.batch_size

    # Set-up

    @property
    def prompt_template(self) -> PromptTemplate:
        """The template in use: the one asked for, else the adapter's own, else ReportPrompt."""
        if self.template is None:
            module = self.trainer.lightning_module if self.trainer else None
            self.template = getattr(module, "adapter_template", None) or ReportPrompt()
        return self.template

    @property
    def encoder(self) -> Encoder:
        """Tokenizer and template together. The tokenizer is the model's unless one was set."""
        tokenizer = self.tokenizer
        if tokenizer is None and self.trainer is not None:
            tokenizer = getattr(self.trainer.lightning_module, "tokenizer", None)
        if tokenizer is None:
            raise UserError("the data module needs a tokenizer: set its `tokenizer` or use it with a TypstModule.")
        return Encoder(tokenizer, self.prompt_template)

    def prepare_data(self) -> None:
        """Fills the caches, in one process only."""
        assert self.trainer is not None
        if not self._tables:
            self.load(self.trainer.state.fn)

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        if not self._tables:
            self.load(self.trainer.state.fn)

    def load(self, fn: TrainerFn | str | None) -> None:
        """Reads, checks, splits and tokenises what a stage needs."""
        if fn == TrainerFn.PREDICTING:
            self._tables = {"predict": self._read(self.predict_path, "predict_path", needs_reference=False)}
            return
        encoded = self._read_pairs(fn)
        if {"train", "val"} <= encoded.keys():
            self._warn_of_leaks(encoded["train"], encoded["val"])
        longest = max(int(column(table, "length").max()) for table in encoded.values())
        self.length_limit = min(longest, self.max_length_cap) if self.max_length == "auto" else self.max_length
        policy = LengthPolicy(self.length_limit, self.overlength)
        self._tables = {name: policy.apply(name, table, self.encoder) for name, table in encoded.items()}

    def _read_pairs(self, fn: TrainerFn | str | None) -> dict[str, Dataset]:
        """Reads and checks every record before anything else is done, tokenises and splits them."""
        if fn == TrainerFn.TESTING and self.test_path is not None:
            return {"test": self._encode(self._read(self.test_path, "test_path"))}
        if fn != TrainerFn.FITTING and self.val_path is not None:
            return {"val": self._encode(self._read(self.val_path, "val_path"))}
        table = self.pairs()
        if self.val_path is not None:
            held_out = self._read(self.val_path, "val_path")
            return {"train": self._encode(table), "val": self._encode(held_out)}
        if self.val_fraction == 0:
            return {"train": self._encode(table)}
        if len(table) < 2:
            log.warning("Nothing is held out for validation: there is only one record.")
            return {"train": self._encode(table)}
        groups = group_names(table, self.group_by, self.prompt_template.fields)
        train, val = split_by_group(groups, self.val_fraction, self.seed)
        encoded = self._encode(table)
        return {"train": encoded.select(train), "val": encoded.select(val)}

    def _read(
        self, path: str | None, name: str, needs_reference: bool = True, source: RecordSource | None = None
    ) -> Dataset:
        if source is None and path is None:
            raise UserError(f"no data given: name a file, a folder or a hub data set with --data.{name}.")
        return load_records(
            source or open_source(path or ""),
            self.prompt_template,
            needs_reference=needs_reference,
            on_invalid=self.on_invalid,
            cache_dir=self.cache_dir,
        )

    def _encode(self, table: Dataset) -> Dataset:
        encoder = self.encoder
        processes = self.num_proc or max(1, min(os.cpu_count() or 1, len(table) // ROWS_PER_PROCESS))
        names = [field.name for field in self.prompt_template.fields]
        # Only what is new is written, and the table's own columns are put beside it as they are.
        columns = table.select_columns([*names, "reference"])
        parts = [
            columns.select(range(first, min(first + ROWS_PER_PART, len(table)))).map(
                _encode_rows,
                batched=True,
                batch_size=1000,
                num_proc=processes if processes > 1 else None,
                fn_kwargs={"encoder": encoder, "names": names},
                remove_columns=[*names, "reference"],
                new_fingerprint=cache_key("tokenize-4", table._fingerprint, encoder.fingerprint, first),
                desc="Tokenising" if len(table) <= ROWS_PER_PART else f"Tokenising from record {first:,}",
            )
            for first in range(0, len(table), ROWS_PER_PART)
        ]
        encoded = concatenate_datasets(parts)
        whole = concatenate_datasets([table, encoded], axis=1)
        assert isinstance(whole, Dataset)
        return whole

    def _warn_of_leaks(self, train: Dataset, val: Dataset) -> None:
        share = len(val) / (len(train) + len(val))
        log.info("Held out for validation: %d of %d records (%.0f %%).", len(val), len(train) + len(val), 100 * share)
        if self.val_path is None and share > max(0.3, 2 * self.val_fraction):
            log.warning(
                "Whole groups are held out, so validation has %.0f %% of the records where %.0f %% were asked for. "
                "More groups, or --data.val_path, give a finer split.", 100 * share, 100 * self.val_fraction,
            )  # fmt: skip
        pairs = find_near_duplicates(train, val)
        if pairs:
            held, trained, similarities = zip(*pairs, strict=True)
            places = zip(record_origins(val, held), record_origins(train, trained), similarities, strict=True)
            like = [f"{one} is like {other} (similarity {similarity:.2f})" for one, other, similarity in places]
            log.warning(
                "%d of %d held-out records have a near-duplicate among those to train on: val_loss will look better "
                "than it is. Hold out whole groups with --data.group_by FIELD.\n%s",
                len(pairs), len(val), listing(like, 10),
            )  # fmt: skip

    def pairs(self) -> Dataset:
        """Reads and checks the pairs of ``path``, before any tokenizer is needed."""
        return self._read(self.path, "path", source=self.source)

    def length_report(self, pairs: Dataset) -> LengthReport:
        """Returns the token counts of `pairs`, whole."""
        table = self._encode(pairs)
        prompt = column(table, "prompt_length")
        return LengthReport(prompt, column(table, "length") - prompt)

    @property
    def train_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (N,) of the samples to train on, cut to ``length_limit``, and how many of them are prompts'."""
        table = self._tables["train"]
        return column(table, "length"), column(table, "prompt_length")

    # Loaders

    def train_dataloader(self) -> DataLoader[Example]:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        return self._loader("val", self.eval_batch_size) if "val" in self._tables else []

    def test_dataloader(self) -> DataLoader[Example]:
        name = "test" if "test" in self._tables else "val"
        if name not in self._tables:
            raise UserError("nothing to test on: name pairs with --data.test_path, or hold some out.")
        return self._loader(name, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[list[int]]:
        rows = range(self.predict_start, len(self._tables["predict"]))
        return DataLoader(rows, batch_size=self.eval_batch_size, collate_fn=self._prompts)  # type: ignore[arg-type]

    def _prompts(self, rows: Sequence[int]) -> PromptBatch:
        return PromptBatch(list(rows), self.encoder.prompts([self.record(row) for row in rows]))

    def record(self, index: int) -> dict[str, Any]:
        """Returns the fields of one record to predict."""
        row = self._tables["predict"][index]
        return {field.name: row[field.name] for field in self.prompt_template.fields}

    def predict_records(self) -> list[dict[str, Any]]:
        """Returns the fields of all records to predict, in order."""
        return [self.record(index) for index in range(len(self._tables["predict"]))]

    @property
    def test_origin(self) -> str:
        """What the test command tests on, in words."""
        own = self.test_path or self.val_path
        return own if own else f"held-out part of {self.path or self.source}"

    def held_out(self, stage: str, count: int | None = None) -> list[Pair]:
        """Returns the pairs of a stage (``val`` or ``test``), or ``count`` of them from all over the table.

        They are whole, as predict would get them, even where the length policy shortened them for the loss.
        """
        name = stage if stage in self._tables else "val"
        if name not in self._tables:
            return []
        table = self._tables[name]
        places = np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int)) if count else None
        rows = table if places is None else table.select(places)
        names = [field.name for field in self.prompt_template.fields]
        return [Pair(row["origin"], {name: row[name] for name in names}, row["reference"]) for row in rows]

    def _loader(self, name: str, batch_size: int, shuffle: bool = False) -> DataLoader[Example]:
        assert self.length_limit is not None and self.trainer is not None
        examples = TokenizedDataset(self._tables[name], self.completion_only_loss)
        trainer = self.trainer
        options: dict[str, Any] = {
            "seed": self.seed, "shuffle": shuffle, "rank": trainer.global_rank, "world_size": trainer.world_size,
            "epoch": lambda: trainer.current_epoch, "start": self._start(examples) if shuffle else (0, 0),
        }  # fmt: skip
        sampler: DeterministicBatchSampler
        collate: Callable[[Sequence[Example]], Batch]
        if self.packing:
            sampler = PackedSampler(examples.lengths, batch_size, self.length_limit, **options)
            collate = PackingCollator()
            share = examples.lengths.sum() / (sampler.row_count * self.length_limit)
            log.info("%s: %d samples in %d rows of %d tokens, %.1f %% full.", name, len(examples), sampler.row_count,
                     self.length_limit, 100 * share)  # fmt: skip
        else:
            sampler = LengthGroupedSampler(examples.lengths, batch_size, **options)
            tokenizer = self.encoder.tokenizer
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            collate = Collator(pad, self.length_limit)
        return WatchedLoader(
            examples,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            patience=self.worker_timeout,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # otherwise it draws from the global one
        )

    # Resuming

    def _order_key(self) -> str:
        """What the order of the batches follows from, beside the epoch."""
        lengths = column(self._tables["train"], "length")
        return cache_key(lengths.tolist(), self.batch_size, self.packing, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch to go on in, and the batches of all processes that are done in it; the end of one epoch is
        the start of the next.
        """
        trainer = self.trainer
        if trainer is None or "train" not in self._tables:
            return {}
        loop: Any = trainer.fit_loop
        epoch, batch = loop.epoch_progress.current.started - 1, loop.epoch_loop.batch_progress.current.processed
        if batch >= trainer.num_training_batches:
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batches": batch * trainer.world_size, "order": self._order_key()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._resume_from = (state_dict["epoch"], state_dict["batches"])
            self._resume_order = state_dict["order"]

    def _start(self, examples: TokenizedDataset) -> tuple[int, int]:
        if self._resume_order is not None and self._resume_order != self._order_key():
            log.warning(
                "The data, its lengths or the batch size changed since the checkpoint: this epoch goes on in another "
                "order, and some samples may be seen twice in it or not at all."
            )
        return self._resume_from


def _encode_rows(columns: Mapping[str, list[Any]], encoder: Encoder, names: Sequence[str]) -> dict[str, list[Any]]:
    records = [dict(zip(names, values, strict=True)) for values in zip(*(columns[name] for name in names), strict=True)]
    encoded = encoder.encode(records, columns["reference"])
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    # As arrays, they need not be looked through number by number before they are written.
    encoded["input_ids"] = [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
    encoded["minhash"] = [minhash_signature(record[encoder.template.body_field]) for record in records]
    return encoded
