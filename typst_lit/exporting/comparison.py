"""Whether an exported model is still the model that was trained: its loss and its documents on sample records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import nn

from typst_lit.data.batching import Collator
from typst_lit.data.encoding import Encoder, Example
from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.records import parse_record
from typst_lit.data.sources import FileSource
from typst_lit.errors import UserError
from typst_lit.inference.generator import Generator
from typst_lit.inference.settings import GenerationSettings
from typst_lit.model.forward import summed_loss

# What the models write by themselves
GREEDY = GenerationSettings(max_tokens=256, temperature=0, repetition_penalty=1.0, checkpoints=False, contract=False)
NUM_PAIRS = 4
# Maximum change of the mean loss that rounding explains, by the format of the exported weights
MAX_LOSS_CHANGE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.05, "f16": 0.02, "q8_0": 0.1}


@dataclass(frozen=True)
class Comparison:
    """How similar two models are on sample records.

    Attributes:
        loss_before: mean loss per token of the first model.
        loss_after: mean loss per token of the second model.
        num_same: documents, decoded greedily up to 256 tokens, that are identical.
        num_documents: number of documents compared.

    >>> print(Comparison(loss_before=0.5, loss_after=0.5003, num_same=3, num_documents=4))
    loss 0.5000 before, 0.5003 after; 3 of 4 greedy documents are the same
    """

    loss_before: float
    loss_after: float
    num_same: int
    num_documents: int

    def __str__(self) -> str:
        return (
            f"loss {self.loss_before:.4f} before, {self.loss_after:.4f} after; {self.num_same} of "
            f"{self.num_documents} greedy documents are the same"
        )

    def check(self, weights_format: str) -> None:
        """Checks that the losses differ by no more than rounding to a format of `MAX_LOSS_CHANGE` explains.

        Raises:
            UserError: when they do.

        >>> Comparison(0.5, 0.6, 0, 4).check("f16")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        typst_lit.errors.UserError: The exported model is not the trained model: its loss differs by more than ...
        """
        if abs(self.loss_after - self.loss_before) > MAX_LOSS_CHANGE[weights_format]:
            raise UserError(
                "The exported model is not the trained model: its loss differs by more than rounding explains. Do not "
                "use it. Does the adapter train layers that share weights with others (modules_to_save)?"
            )


def compare_models(before: Generator, after: Generator, pairs: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compares the losses and the greedy documents of two models.

    Args:
        before: generates with the first model.
        after: generates with the second model.
        pairs: ``input`` (a record) and ``output`` (its Typst source) of each.

    >>> generator = Generator.load(base_model="typst-nano", use_4bit=False, compile=False)
    >>> pair = {"input": {"starting_page": 1, "academic_year": "2025-26", "department": "CSE"}, "output": "= Title"}
    >>> pair["input"] |= {"project_title": "Hill Farms", "contents_txt": "Two sheep."}
    >>> comparison = compare_models(generator, generator, [pair])
    >>> comparison.num_same, comparison.loss_before == comparison.loss_after
    (1, True)
    """
    documents = [_greedy_documents(generator, pairs) for generator in (before, after)]
    losses = [mean_loss(generator.model, generator.encoder(), pairs) for generator in (before, after)]
    num_same = sum(first == second for first, second in zip(*documents, strict=True))
    return Comparison(losses[0], losses[1], num_same, len(pairs))


def _greedy_documents(generator: Generator, pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    settings, generator.settings = generator.settings, GREEDY
    try:
        documents = {document.index: document.source for document in generator.generate([p["input"] for p in pairs])}
    finally:
        generator.settings = settings
    return [documents[index] for index in range(len(pairs))]


def mean_loss(model: nn.Module, encoder: Encoder, pairs: Sequence[Mapping[str, Any]]) -> float:
    """Returns the mean cross-entropy (nats) over all tokens of the references, as the validation loss is computed.

    Args:
        model: a causal language model of transformers, with or without an adapter.
        encoder: renders and tokenizes the records.
        pairs: ``input`` (a record) and ``output`` (its Typst source) of each. They are evaluated one by one.

    Returns:
        0 when there are no pairs.

    >>> generator = Generator.load(base_model="typst-nano", use_4bit=False, compile=False)
    >>> pairs = load_pairs(None, generator.encoder().template, count=1)
    >>> 0 < mean_loss(generator.model, generator.encoder(), pairs) < 3
    True
    """
    causal_lm: Any = model
    encoded = encoder.encode([pair["input"] for pair in pairs], [pair["output"] for pair in pairs])
    total, num_tokens = 0.0, 0
    for ids, prompt_length in zip(encoded["input_ids"], encoded["prompt_length"], strict=True):
        batch = Collator(pad_id=0, max_length=len(ids))([Example.from_ids(ids, prompt_length)])
        batch = batch._replace(
            input_ids=batch.input_ids.to(causal_lm.device),
            labels=batch.labels.to(causal_lm.device),
            target_positions=None,
        )
        with torch.inference_mode():
            loss, count = summed_loss(causal_lm, batch, "none")
        total, num_tokens = total + float(loss), num_tokens + int(count)
    return total / max(1, num_tokens)


def load_pairs(path: str | None, template: PromptTemplate, count: int = NUM_PAIRS) -> list[dict[str, Any]]:
    """Returns the first pairs of a file that a template can render.

    Args:
        path: a file that `FileSource` reads; None for the held-out samples of the package.
        template: names the fields of a record.
        count: maximum number of pairs.

    Raises:
        UserError: when a record does not have the fields of the template, or the file contains no pairs.
    """
    path = path or str(files("typst_lit") / "data/samples/held_out.json")
    pairs: list[dict[str, Any]] = []
    for row in FileSource(path).rows():
        record = parse_record(row.value, template.fields, needs_reference=True)
        if row.error or record.errors:
            raise UserError(
                f"{row.origin}: {row.error or '; '.join(record.errors)}.",
                hint="Name pairs to compare on with `records`, or skip the comparison with `check=false`.",
            )
        pairs.append({"input": record.fields, "output": record.reference})
        if len(pairs) == count:
            break
    return pairs
