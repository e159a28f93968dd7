"""From prompts to Typst source: the one generation path of every use."""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.inference.decoder import Decoder, Row
from typst_lit.inference.prompt_lookup import DraftCorpus
from typst_lit.inference.sampling import GenerationSettings


@dataclass(frozen=True)
class Completion:
    """A generated document.

    Attributes:
        text: the Typst source, without the end token.
        tokens: number of generated tokens, the end token included.
        finish_reason: ``stop`` when the model ended it, ``length`` when the token limit did, ``cancelled`` when nobody
            waited for it any longer.
        seconds: from its first turn to its end; others were generated in the same time.
        passes: forward passes that it took, the reading of its prompt not counted.
    """

    text: str
    tokens: int
    finish_reason: str
    seconds: float
    passes: int


@dataclass(eq=False)
class Job:
    """A prompt on its way through an `Engine`.

    Attributes:
        row: what is decoded.
        adapter: the name of the adapter that answers; None for the one that is set, or none.
        completion: the document, once it is done.
        error: what went wrong instead.
        on_done: called in the engine's thread when either is there.
        on_text: called in the engine's thread with all of the source so far, whenever there is more of it.
    """

    row: Row
    adapter: str | None = None
    completion: Completion | None = None
    error: Exception | None = None
    on_done: Callable[[Job], None] | None = None
    on_text: Callable[[str], None] | None = None
    cancelled: bool = False
    began: float = 0.0


class Decoding(Protocol):
    """What an `Engine` decodes with: the built-in `Decoder`, or another engine's in its form."""

    def add(self, rows: Sequence[Row]) -> None:
        """Takes rows in, which then take part in every step until they have a finish reason."""

    def step(self) -> None:
        """Decodes some tokens of every row, and notes in each that ends why."""

    def remove(self, row: Row) -> None:
        """Takes a row out that nobody waits for any longer."""

    def set_adapter(self, name: str) -> None:
        """Lets the adapter of this name answer the rows to come."""


class Engine:
    """Decodes the prompts that are waiting, so many at once, and takes up the next as soon as one is done.

    Jobs may be submitted and cancelled from any thread; one thread calls `pump`, again and again.

    Args:
        model: a model in evaluation mode, with or without adapters; None where another decoder has its own.
        tokenizer: its tokenizer.
        batch_size: documents at once.
        shelf: texts to copy from, beside the prompt; finished ones are added.
        decoder: what decodes, if not the built-in `Decoder` over the model.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | None,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        shelf: DraftCorpus | None = None,
        decoder: Decoding | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        if decoder is None:
            assert model is not None
            decoder = Decoder(
                model, eos_token_ids(model.generation_config, tokenizer), DraftCorpus() if shelf is None else shelf
            )
        self._decoder = decoder
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._adapter: str | None = None  # of the jobs that run: one forward pass has one adapter
        self._lock = threading.Lock()

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue."""
        with self._lock:
            self._waiting.append(job)

    def cancel(self, job: Job) -> None:
        """Gives up a job: it makes room for others at the next `pump`."""
        job.cancelled = True

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs under way."""
        return len(self._running)

    @property
    def tokens(self) -> int:
        """Tokens so far of the jobs under way."""
        return sum(len(job.row.output) for job in self._running)

    def pump(self) -> bool:
        """Lets waiting jobs in and decodes one step of all; returns whether there was anything to do."""
        for job in [job for job in self._running if job.cancelled]:
            self._decoder.remove(job.row)
            self._finish(job)
        self._admit()
        if not self._running:
            return False
        before = [len(job.row.text.tokens) for job in self._running]
        self._decoder.step()
        for job, length in zip(list(self._running), before, strict=True):
            if job.on_text and len(job.row.text.tokens) > length:
                job.on_text(self._text(job.row))
            if job.row.finish_reason:
                self._finish(job)
        return True

    def fail(self, error: Exception) -> None:
        """Gives up all jobs under way, after a step that went wrong."""
        for job in list(self._running):
            job.error = error
            self._decoder.remove(job.row)
            self._finish(job)

    def _admit(self) -> None:
        with self._lock:
            for job in [job for job in self._waiting if job.cancelled]:
                self._waiting.remove(job)
                job.row.finish_reason = "cancelled"
                self._finish(job)
            joining: list[Job] = []
            while self._waiting and len(self._running) + len(joining) < self.batch_size:
                job = self._waiting[0]
                if job.adapter != self._adapter:
                    if self._running or joining:
                        break  # those of the other adapter first, so that nobody waits for ever
                    self._set_adapter(job.adapter)
                joining.append(self._waiting.popleft())
        for job in joining:
            job.began = time.monotonic()
            try:
                self._decoder.add([job.row])
            except Exception as error:
                job.error = error
                self._finish(job)
            else:
                self._running.append(job)

    def _set_adapter(self, name: str | None) -> None:
        if name is not None:
            self._decoder.set_adapter(name)
        self._adapter = name

    def _finish(self, job: Job) -> None:
        if job in self._running:
            self._running.remove(job)
        if job.error is None:
            ended = job.row.finish_reason == "stop"
            job.completion = Completion(
                self._text(job.row),
                len(job.row.output) + ended,
                str(job.row.finish_reason),
                time.monotonic() - job.began,
                job.row.passes,
            )
        if job.on_done:
            job.on_done(job)

    def _text(self, row: Row) -> str:
        return str(self.tokenizer.decode(row.output, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def eos_token_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns every id that ends a document: the tokenizer's end token, which training uses, and the model's own.

    Args:
        config: the model's.
        tokenizer: its tokenizer.
    """
    own = getattr(config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    ends = dict.fromkeys([tokenizer.eos_token_id, *own])
    return [end for end in ends if end is not None]


def seed_of(seed: int, prompt: Sequence[int], attempt: int = 0) -> list[int]:
    """Returns what a document's random numbers are made from: seed, prompt and attempt, not its place among others."""
    return [seed, attempt, zlib.crc32(np.asarray(prompt, dtype=np.int64).tobytes())]


def completions(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    shelf: DraftCorpus | None = None,
    batch_size: int = 8,
) -> Iterator[tuple[int, Completion]]:
    """Generates one document a prompt, and yields each with its prompt's place as soon as it is done.

    The longest prompts come first. What a document says depends on its prompt and the settings alone, not on its
    neighbours (but for rounding).

    Args:
        model: a model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: ids of each prompt, of any lengths.
        settings: how to sample.
        shelf: texts to copy from, beside the prompt; finished ones are added.
        batch_size: documents at once.

    Raises:
        UserError: when a prompt leaves no room in the model's context for a document.
    """
    engine = Engine(model, tokenizer, batch_size, shelf)
    done: list[tuple[int, Job]] = []
    for place in sorted(range(len(prompts)), key=lambda place: -len(prompts[place])):
        row = Row(prompts[place], settings, seed_of(settings.seed, prompts[place]))
        engine.submit(Job(row, on_done=lambda job, place=place: done.append((place, job))))  # type: ignore[misc]
    while engine.pump() or done:
        for place, job in done:
            if job.error is not None:
                raise job.error
            assert job.completion is not None
            yield place, job.completion
        done.clear()


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    shelf: DraftCorpus | None = None,
) -> list[Completion]:
    """Generates one document a prompt, all at once, and returns them in order; see `completions`."""
    found = dict(completions(model, tokenizer, prompts, settings, shelf, len(prompts)))
    return [found[place] for place in range(len(prompts))]
