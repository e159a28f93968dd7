"""The adapter put into its base model's 16-bit weights, and whether the two still say the same."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig

from typst_lit.data.batching import Collator
from typst_lit.data.encoding import Example
from typst_lit.errors import UserError
from typst_lit.inference.decoder import eos_token_ids
from typst_lit.inference.generator import Generator
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.model.adapters import ABOUT_FILE
from typst_lit.model.losses import chunked_cross_entropy

GREEDY = GenerationSettings(max_tokens=256, temperature=0, repetition_penalty=1.0)
# Engines that know chats only get the prompt as it is, for that is what the model was trained on.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Agreement:
    """How alike two forms of a model are on sample records.

    Attributes:
        before: mean loss of a token before.
        after: mean loss of a token after.
        same: documents, decoded greedily up to 256 tokens, that are letter for letter the same.
        documents: how many there were.
    """

    before: float
    after: float
    same: int
    documents: int

    def __str__(self) -> str:
        return (
            f"loss {self.before:.4f} before, {self.after:.4f} after; {self.same} of {self.documents} greedy documents "
            "are the same"
        )


def agreement(before: Generator, after: Generator, pairs: Sequence[Mapping[str, Any]]) -> Agreement:
    """Compares two models on pairs of record and Typst source."""
    texts = []
    for generator in (before, after):
        generator.settings = GREEDY
        documents = sorted(generator.generate([pair["input"] for pair in pairs]), key=lambda document: document.index)
        texts.append([document.source for document in documents])
    same = sum(one == other for one, other in zip(*texts, strict=True))
    return Agreement(mean_loss(before, pairs), mean_loss(after, pairs), same, len(pairs))


def mean_loss(generator: Generator, pairs: Sequence[Mapping[str, Any]]) -> float:
    """Returns the mean loss of the references' tokens under a generator's model."""
    model: Any = generator.model
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    encoder = generator.encoder()
    encoded = encoder.encode([pair["input"] for pair in pairs], [pair["output"] for pair in pairs])
    total, count = 0.0, 0
    for ids, prompt_length in zip(encoded["input_ids"], encoded["prompt_length"], strict=True):
        batch = Collator(0, len(ids))([Example.from_ids(ids, prompt_length)])
        with torch.inference_mode():
            hidden = base.get_decoder()(input_ids=batch.input_ids.to(model.device), use_cache=False)[0]
            loss, tokens = chunked_cross_entropy(hidden, batch.labels.to(model.device), base.get_output_embeddings())
        total, count = total + float(loss), count + int(tokens)
    return total / max(1, count)


def merge(generator: Generator) -> Any:
    """Merges a generator's adapter into its base model and returns that. The generator can't be used any longer.

    Raises:
        UserError: when the adapter is of a kind that can't be merged.
    """
    model: Any = generator.model
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise UserError(
                f"a {model.active_peft_config.peft_type} adapter is no change of weights, so it can't be merged. "
                "Engines that know PEFT take it as it is."
            )
        model = model.merge_and_unload(safe_merge=True)
    return model


def write_merged(generator: Generator, out: Path, dtype: torch.dtype, shard_size: str) -> None:
    """Merges a generator's adapter and writes a model folder, whole or not at all.

    Raises:
        UserError: when the adapter is of a kind that can't be merged.
    """
    model, encoder = merge(generator), generator.encoder()
    ends = sorted(eos_token_ids(model.generation_config, encoder.tokenizer))
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.95, top_k=50, eos_token_id=ends,
        pad_token_id=encoder.tokenizer.pad_token_id,
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.to(dtype).save_pretrained(scratch, max_shard_size=shard_size)
        tokenizer = encoder.tokenizer
        kept, tokenizer.chat_template = tokenizer.chat_template, CHAT_TEMPLATE
        tokenizer.save_pretrained(scratch)
        tokenizer.chat_template = kept
        about = {"template": encoder.template.describe()}
        (scratch / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        scratch.chmod(0o755)  # mkdtemp's own would keep a server that runs as another user out
        if out.exists():
            out.rmdir()  # it is empty
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
