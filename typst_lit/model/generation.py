"""From prompts to Typst source: one generation path for every use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from typst_lit.errors import UserError


@dataclass(frozen=True)
class GenerationSettings:
    """How documents are sampled.

    Args:
        max_tokens: most tokens of a document.
        temperature: 0 always takes the likeliest token; 0.1 to 0.3 keeps to the format, 0.7 varies it.
        top_p: sample only among the likeliest tokens that together have this probability.
        top_k: sample only among so many likeliest tokens; 0 for all.
        repetition_penalty: above 1, tokens that were already generated become less likely. The prompt's tokens do not
            count, as copying them is the task.
        seed: makes sampling repeatable.
    """

    max_tokens: int = 2048
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    repetition_penalty: float = 1.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature <= 2, "from 0 to 2"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 1 <= self.repetition_penalty <= 2, "from 1 to 2"),
        ):
            if not good:
                raise UserError(f"generation.{name} must be {allowed}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Completion:
    """A generated document.

    Attributes:
        text: the Typst source, without the end token.
        tokens: number of generated tokens, the end token included.
        finish_reason: ``stop`` when the model ended it, ``length`` when the token limit did.
    """

    text: str
    tokens: int
    finish_reason: str


def end_tokens(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns every id that ends a document: the tokenizer's end token, which training uses, and the model's own."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    ends = dict.fromkeys([tokenizer.eos_token_id, *own])
    return [end for end in ends if end is not None]


@torch.inference_mode()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
) -> list[Completion]:
    """Generates one document a prompt, as one batch padded on the left.

    Args:
        model: a model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: ids of each prompt, of any lengths.
        settings: how to sample.

    Raises:
        UserError: when a prompt leaves no room in the model's context for a document.
    """
    width = max(map(len, prompts))
    context = getattr(model.config, "max_position_embeddings", None) or width + settings.max_tokens
    if width >= context:
        raise UserError(f"a record's prompt has {width} tokens, and the model reads {context}: shorten its text.")
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    device = model.device
    input_ids = torch.full((len(prompts), width), pad, dtype=torch.long, device=device)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    config = GenerationConfig(
        max_new_tokens=min(settings.max_tokens, context - width),
        do_sample=settings.temperature > 0,
        eos_token_id=ends,
        pad_token_id=pad,
        use_cache=True,
        repetition_penalty=1.0,  # else the model's own default would come in; ours is a processor, below
        **(sampling if settings.temperature > 0 else {}),
    )
    processors = LogitsProcessorList()
    if settings.repetition_penalty > 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty, prompt_ignore_length=width))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        output = model.generate(  # type: ignore[operator]
            input_ids=input_ids, attention_mask=mask, generation_config=config, logits_processor=processors
        )
    return [_completion(row[width:].tolist(), ends, tokenizer) for row in output]


def _completion(ids: list[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    kept = ids if end is None else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(str(text), len(kept) + (end is not None), "length" if end is None else "stop")
