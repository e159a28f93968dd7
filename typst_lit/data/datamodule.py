"""The data of a run: read, checked, split, tokenized, cut to length, and handed out in batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
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
    RecordBatch,
)
from typst_lit.data.dataset import Pair, TokenizedDataset, read_pairs
from typst_lit.data.encoding import Encoder, Example
from typst_lit.data.length_policy import LengthPolicy, Overlength
from typst_lit.data.lengths import LengthReport
from typst_lit.data.loader import TimeoutDataLoader
from typst_lit.data.minhash import warn_of_near_duplicates
from typst_lit.data.position import TrainingPosition
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.data.sources import RecordSource, open_source
from typst_lit.data.splitting import group_names, log_split, split_by_group
from typst_lit.data.table import column, load_records
from typst_lit.data.tokenization import tokenize
from typst_lit.errors import UserError
from typst_lit.files import cache_key

log = logging.getLogger(__name__)
BATCHES_PER_PREDICT_STEP = 4


class TypstDataModule(LightningDataModule):
    """Pairs of record and Typst source for training, records for prediction.

    Args:
        path: pairs to train on: a JSON list, one JSON object, JSON lines, Parquet, a folder of such files, or the name
            of a data set on the hub.
        val_path: pairs to validate on; without it a part of ``path`` is held out.
        test_path: pairs for the test command; without it the held-out ones.
        predict_path: records to generate documents for.
        source: where the pairs come from instead of ``path``: a plugin's RecordSource.
        template: how a record becomes a prompt, and which fields it has. By default the template of the adapter in
            use, or else ReportPrompt.
        on_invalid: what to do with invalid records: stop and list them, or log and skip them.
        val_fraction: share of ``path`` to hold out; 0 for none.
        group_by: field whose values stay together on one side of the split; "auto" is project_title if it has several
            values, "none" splits record by record.
        max_length: maximum number of tokens per sample; "auto" covers all samples up to ``max_length_cap``.
        max_length_cap: the maximum that "auto" chooses.
        overlength: what to do with longer samples: drop them; shorten the record's text in the prompt, so that the
            completion stays intact (truncate_text); cut the end of the completion, and the EOS token with it
            (truncate_completion); or stop and list them (error).
        completion_only_loss: learn the tokens of the completions only; false learns those of the prompts too.
        packing: fill rows of ``max_length`` tokens with complete samples, which don't see each other, instead of
            padding; ``batch_size`` then counts rows.
        batch_size: samples per step and device.
        eval_batch_size: samples per validation step, or records generated together; by default ``batch_size``.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        worker_timeout_s: seconds to wait for a batch of such a process before the run stops; 0 waits forever.
        num_proc: processes that tokenize; by default as many as the cores and the data are worth.
        cache_dir: where the tables are cached; by default the cache of the datasets library.
        seed: decides the split and the order.

    Example:
        >>> from importlib.resources import files
        >>> from typst_lit.model.backbones import PretrainedBackbone
        >>> data = TypstDataModule(str(files("typst_lit.data") / "samples" / "reports.json"), val_fraction=0.25)
        >>> data.tokenizer = PretrainedBackbone().load_tokenizer("typst-nano", None, False)
        >>> data.load("fit")
        >>> loaders = data.train_dataloader(), data.val_dataloader()
        >>> [sum(len(batch.lengths) for batch in loader) for loader in loaders]
        [35, 10]
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
        worker_timeout_s: float = 600.0,
        num_proc: int | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise UserError(f"must be at least 0 and below 1, not {val_fraction}.", setting="data.val_fraction")
        at_least_one = {
            "max_length": max_length,
            "max_length_cap": max_length_cap,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "num_proc": num_proc,
        }
        for name, value in at_least_one.items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"must be 1 or more, not {value}.", setting=f"data.{name}")
        if num_workers < 0 or worker_timeout_s < 0:
            raise UserError("`data.num_workers` and `data.worker_timeout_s` must be 0 or more.")
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
        self.worker_timeout_s = worker_timeout_s
        self.num_proc = num_proc
        self.cache_dir = cache_dir
        self.seed = seed
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.length_limit: int | None = None  # the value of max_length once the data is loaded
        self._tables: dict[str, Dataset] = {}
        self._position = TrainingPosition()

    @property
    def eval_batch_size(self) -> int:
        """Samples per validation step."""
        return self._eval_batch_size or self.batch_size

    @property
    def prompt_template(self) -> PromptTemplate:
        """The template in use: ``template``, or else the adapter's own, or else ReportPrompt."""
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

    # Tables

    def prepare_data(self) -> None:
        """Fills the caches, in one process only."""
        self.setup("")

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        if not self._tables:
            self.load(self.trainer.state.fn)

    def load(self, fn: TrainerFn | str | None) -> None:
        """Reads, checks, splits and tokenizes what a stage needs: ``fit``, ``validate``, ``test`` or ``predict``."""
        if fn == TrainerFn.PREDICTING:
            self._tables = {"predict": self._read(self.predict_path, "predict_path", needs_reference=False)}
            return
        tables = self._read_tables(fn)
        if {"train", "val"} <= tables.keys():
            log_split(len(tables["train"]), len(tables["val"]), None if self.val_path else self.val_fraction)
            warn_of_near_duplicates(tables["train"], tables["val"])
        longest = max(int(column(table, "length").max()) for table in tables.values())
        self.length_limit = min(longest, self.max_length_cap) if self.max_length == "auto" else self.max_length
        policy = LengthPolicy(self.length_limit, self.overlength)
        self._tables = {name: policy.apply(name, table, self.encoder) for name, table in tables.items()}

    def _read_tables(self, fn: TrainerFn | str | None) -> dict[str, Dataset]:
        """Returns the tokenized tables of a stage. All records are checked before any is tokenized."""
        if fn == TrainerFn.TESTING and self.test_path is not None:
            return {"test": self._tokenize(self._read(self.test_path, "test_path"))}
        if fn != TrainerFn.FITTING and self.val_path is not None:
            return {"val": self._tokenize(self._read(self.val_path, "val_path"))}
        pairs = self.pairs()
        if self.val_path is not None:
            val_pairs = self._read(self.val_path, "val_path")
            return {"train": self._tokenize(pairs), "val": self._tokenize(val_pairs)}
        if self.val_fraction and len(pairs) < 2:
            log.warning("Nothing is held out for validation: there is only one record.")
        if not self.val_fraction or len(pairs) < 2:
            return {"train": self._tokenize(pairs)}
        groups = group_names(pairs, self.group_by, self.prompt_template.fields)
        train, val = split_by_group(groups, self.val_fraction, self.seed)
        table = self._tokenize(pairs)
        return {"train": table.select(train), "val": table.select(val)}

    def _read(
        self, path: str | None, name: str, needs_reference: bool = True, source: RecordSource | None = None
    ) -> Dataset:
        if source is None and path is None:
            raise UserError(f"no data given: name a file, a folder or a hub data set with `data.{name}`.")
        return load_records(
            source or open_source(path or ""),
            self.prompt_template,
            needs_reference=needs_reference,
            on_invalid=self.on_invalid,
            skip_setting="data.on_invalid=skip",
            cache_dir=self.cache_dir,
        )

    def _tokenize(self, table: Dataset) -> Dataset:
        return tokenize(table, self.encoder, self.num_proc)

    def pairs(self) -> Dataset:
        """Reads and checks the pairs of ``path``. It needs no tokenizer."""
        return self._read(self.path, "path", source=self.source)

    def length_report(self, pairs: Dataset) -> LengthReport:
        """Returns the token counts of `pairs`, before any is truncated or dropped."""
        table = self._tokenize(pairs)
        prompt_lengths = column(table, "prompt_length")
        return LengthReport(prompt_lengths, column(table, "length") - prompt_lengths)

    @property
    def train_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (N,) of the training samples, and of their prompts."""
        return column(self._tables["train"], "length"), column(self._tables["train"], "prompt_length")

    @property
    def max_completion_tokens(self) -> int | None:
        """Number of tokens of the longest training completion, with EOS; None where no training data is loaded."""
        if "train" not in self._tables:
            return None
        lengths, prompt_lengths = self.train_lengths
        return int((lengths - prompt_lengths).max())

    def training_pairs(self, max_pairs: int) -> list[Pair]:
        """Returns the training pairs, or ``max_pairs`` of them from all over the table."""
        return read_pairs(self._tables["train"], self.prompt_template.fields, max_pairs)

    def held_out(self, stage: str, max_pairs: int | None = None) -> list[Pair]:
        """Returns the pairs of a stage (``val`` or ``test``), or ``max_pairs`` of them from all over the table.

        They are intact, as predict would get them, even if the length policy truncated them for the loss.
        """
        table = self._tables.get(stage, self._tables.get("val"))
        return [] if table is None else read_pairs(table, self.prompt_template.fields, max_pairs)

    @property
    def test_origin(self) -> str:
        """The name of the data that the test command uses."""
        return self.test_path or self.val_path or f"held-out part of {self.path or self.source}"

    # Records to generate for

    def predict_dataloader(self) -> DataLoader[RecordBatch]:
        indices = range(len(self._tables["predict"]))
        # More than are decoded at the same time: as soon as a document is done, the next record of the batch follows.
        batch_size = BATCHES_PER_PREDICT_STEP * self.eval_batch_size
        return DataLoader(indices, batch_size=batch_size, collate_fn=self._record_batch)  # type: ignore[arg-type]

    def _record_batch(self, indices: Sequence[int]) -> RecordBatch:
        rows = self._tables["predict"].select(indices)
        return RecordBatch(list(indices), self._fields(rows), list(rows["origin"]))

    def predict_records(self) -> list[dict[str, Any]]:
        """Returns the fields of all records to generate for, in order."""
        return self._fields(self._tables["predict"])

    def _fields(self, table: Dataset) -> list[dict[str, Any]]:
        names = [field.name for field in self.prompt_template.fields]
        return [{name: row[name] for name in names} for row in table]

    # Loaders

    def train_dataloader(self) -> DataLoader[Example]:
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        return self._loader("val", self.eval_batch_size) if "val" in self._tables else []

    def test_dataloader(self) -> DataLoader[Example]:
        name = "test" if "test" in self._tables else "val"
        if name not in self._tables:
            raise UserError("nothing to test on: name pairs with `data.test_path`, or hold some out.")
        return self._loader(name, self.eval_batch_size)

    def _loader(self, name: str, batch_size: int, shuffle: bool = False) -> DataLoader[Example]:
        assert self.length_limit is not None
        dataset = TokenizedDataset(self._tables[name], self.completion_only_loss)
        trainer = self.trainer
        options: dict[str, Any] = {"seed": self.seed, "shuffle": shuffle}
        if trainer is not None:
            options |= {"rank": trainer.global_rank, "world_size": trainer.world_size}
            options |= {"epoch": lambda: trainer.current_epoch}
        if shuffle:
            options["start"] = self._position.start(self._order_key())
        sampler: DeterministicBatchSampler
        collator: Callable[[Sequence[Example]], Batch]
        if self.packing:
            sampler = PackedSampler(dataset.lengths, batch_size, self.length_limit, **options)
            collator = PackingCollator()
            log.info("%s: %s", name, sampler.summary())
        else:
            tokenizer = self.encoder.tokenizer
            sampler = LengthGroupedSampler(dataset.lengths, batch_size, **options)
            pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            collator = Collator(pad_id, self.length_limit)
        return TimeoutDataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_timeout_s=self.worker_timeout_s,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # by default, it draws from the global generator
        )

    # Resuming

    def _order_key(self) -> str:
        return cache_key(self.train_lengths[0].tolist(), self.batch_size, self.packing, self.seed)

    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None or "train" not in self._tables:
            return {}
        return self._position.state_dict(self.trainer, self._order_key())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._position.load_state_dict(state_dict)
