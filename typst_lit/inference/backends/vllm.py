"""vLLM in place of the built-in decoder: the same prompts, stops and sampling, on a GPU that it fills.

`VllmDecoder` has the form of `typst_lit.inference.decoder.Decoder`, so queue, attempts, compiling and results are the
ones of every use. What goes to vLLM is made by functions of plain values (`engine_arguments`, `sampling`).

Where the two differ: vLLM's repetition penalty counts the prompt's tokens too, whose copying is the task, so only 1 is
taken. Its random numbers are its own, so one seed gives other documents here, of the same distribution. Its 4-bit
weights are bitsandbytes' NF4 without the second quantisation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig
from transformers import GenerationConfig, PretrainedConfig

from typst_lit.errors import UserError
from typst_lit.exporting.targets import rank_for_vllm
from typst_lit.inference.decoder import BaseDecoder, eos_token_ids
from typst_lit.inference.loading import LoadedModel, ModelSpec, validate_model
from typst_lit.inference.request import Request
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.model import qwen1
from typst_lit.model.backbones import PretrainedBackbone, compute_dtype, path_or_name

# Guesses copied from the document so far, the record included, as the built-in decoder's drafts are; the numbers are
# not tuned. They change how fast a document comes, not which.
SPECULATION = {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_min": 2, "prompt_lookup_max": 5}


def load(spec: ModelSpec, settings: GenerationSettings, batch_size: int) -> LoadedModel:
    """Loads a model and its adapters into vLLM.

    Raises:
        UserError: when vLLM is not installed, or can't do what is asked.
    """
    check_settings(settings)
    ranks = [_rank(path) for path in spec.adapters.values()]
    architecture = validate_model(spec)
    place = path_or_name(spec.base_model)
    if PretrainedConfig.get_config_dict(place)[0].get("model_type") == qwen1.MODEL_TYPE:
        raise UserError(f"{spec.base_model}: vLLM takes it as Qwen2: `typst-lit convert` writes such a folder.")
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(f"--engine vllm needs vLLM ({error}): pip install 'typst-lit[vllm]', with a GPU") from error
    tokenizer = PretrainedBackbone().load_tokenizer(spec.base_model, None, False)
    llm = LLM(**engine_arguments(place, ranks, spec.use_4bit, settings.prompt_lookup, batch_size))
    ends = eos_token_ids(generation_config(place, architecture), tokenizer)
    decoder = VllmDecoder(llm.llm_engine, ends, llm.model_config.max_model_len, spec.adapters)
    return LoadedModel(decoder, tokenizer, spec.templates, spec.identity)


def check_settings(settings: GenerationSettings) -> None:
    """Checks that vLLM samples as the settings say.

    Raises:
        UserError: when it does not.
    """
    if settings.repetition_penalty != 1:
        raise UserError(
            "vLLM's repetition penalty counts the record's words too, whose copying is the task: with --engine vllm, "
            "give --repetition-penalty 1."
        )


def engine_arguments(
    place: str, ranks: Sequence[int], use_4bit: bool, speculate: bool, batch_size: int
) -> dict[str, Any]:
    """Returns the arguments of ``vllm.LLM``.

    Args:
        place: hub name or folder of the base model.
        ranks: of the adapters.
        use_4bit: quantise the base model while it loads.
        speculate: check guesses copied from the document so far.
        batch_size: documents at once.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made: dict[str, Any] = {
        "model": place,
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
        "max_num_seqs": batch_size,
        "generation_config": "vllm",  # sampling is as it is said for each document, not as the model's folder has it
    }
    if use_4bit:
        made["quantization"] = "bitsandbytes"
    if ranks:
        made |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank_for_vllm(max(ranks))}
    if speculate:
        made["speculative_config"] = SPECULATION
    return made


def sampling(row: Request, ends: Collection[int]) -> dict[str, Any]:
    """Returns the arguments of ``vllm.SamplingParams`` for a document."""
    check_settings(row.settings)
    (seed,) = np.random.SeedSequence(row.seed).generate_state(1, np.uint64)
    return {
        "temperature": row.settings.temperature,
        "top_p": row.settings.top_p,
        "top_k": row.settings.top_k,
        "max_tokens": row.max_tokens,
        "seed": int(seed >> np.uint64(1)),  # vLLM takes 63 bits
        "stop_token_ids": sorted(ends),
        "detokenize": False,  # the ids are read as those of the built-in decoder are
    }


def generation_config(place: str, architecture: PretrainedConfig) -> GenerationConfig:
    """Returns the generation config that transformers gives a model which it loads from there."""
    try:
        return GenerationConfig.from_pretrained(place)
    except OSError:  # there is no such file
        return GenerationConfig.from_model_config(architecture)


class VllmDecoder(BaseDecoder):
    """Decodes rows with vLLM; see `typst_lit.inference.decoder.BaseDecoder`.

    Args:
        engine: a ``vllm.LLMEngine``.
        ends: ids that end a document.
        context: tokens that the model reads.
        adapters: directories of the adapters, by name.
    """

    def __init__(self, engine: Any, ends: Collection[int], context: int, adapters: dict[str, Path]) -> None:
        self.ends = frozenset(ends)
        self._engine = engine
        self._context = context
        self._adapters = adapters
        self._adapter: str | None = None
        self._rows: dict[str, Request] = {}
        self._count = 0

    def set_adapter(self, name: str) -> None:
        self._adapter = name

    def add(self, requests: Sequence[Request]) -> None:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        adapter = None
        if self._adapter is not None:
            number = 1 + list(self._adapters).index(self._adapter)
            adapter = LoRARequest(self._adapter, number, str(self._adapters[self._adapter]))
        for row in requests:
            row.limit_to_context(self._context)
            params = SamplingParams(**sampling(row, self.ends), output_kind=RequestOutputKind.FINAL_ONLY)
            self._count += 1
            name = str(self._count)
            self._engine.add_request(name, {"prompt_token_ids": list(row.prompt)}, params, lora_request=adapter)
            self._rows[name] = row

    def step(self) -> None:
        for output in self._engine.step():
            if not output.finished or output.request_id not in self._rows:
                continue
            row = self._rows.pop(output.request_id)
            (made,) = output.outputs
            if made.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM gave a document up: {made.finish_reason}")
            row.text.extend([token for token in made.token_ids if token not in self.ends])
            row.finish_reason = made.finish_reason

    def remove(self, requests: Collection[Request]) -> None:
        for name in [name for name, request in self._rows.items() if request in requests]:
            self._engine.abort_request([name])
            del self._rows[name]


def _rank(directory: Path) -> int:
    """Returns the rank of an adapter.

    Raises:
        UserError: when it is of a kind that vLLM does not know.
    """
    config = PeftConfig.from_pretrained(str(directory))
    if not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save:
        raise UserError(
            f"{directory}: vLLM puts plain LoRA adapters on a base model; this one is of another kind. "
            "`typst-lit export --to merged` makes a model of it that --base-model takes."
        )
    return max([config.r, *(config.rank_pattern or {}).values()])
