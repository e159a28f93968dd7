"""vLLM as the decoder: prompts, EOS tokens and sampling settings are those of the built-in decoder, on a GPU.

`VllmDecoder` has the interface of `typst_lit.inference.decoder.Decoder`, so queue, attempts, compilation and results
are the same for both. Functions of plain values compute what vLLM receives: `engine_arguments`, `sampling_arguments`.

Differences to the built-in decoder: vLLM's repetition penalty also counts the tokens of the prompt, whose copying is
the task, so only 1 is accepted. Its random numbers are its own, so that a seed gives other documents, of the same
distribution. Its documents depend on their batch, so ``deterministic`` is refused. ``valid_syntax``, ``checkpoints``
and ``contract`` have no effect: documents are compiled, repaired and compared with their records once they are
complete. Its 4-bit weights are bitsandbytes' NF4 without double quantization.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig

from typst_lit.errors import UserError
from typst_lit.inference.decoder import BaseDecoder, eos_token_ids
from typst_lit.inference.loading import LoadedModel, validate_model
from typst_lit.inference.model_spec import ModelSpec
from typst_lit.inference.request import Request
from typst_lit.inference.settings import GenerationSettings
from typst_lit.model import qwen1
from typst_lit.model.adapters import plain_lora_rank
from typst_lit.model.backbones import PretrainedBackbone, compute_dtype
from typst_lit.model.locations import path_or_name

# N-gram speculation copies drafts from the prompt, as the built-in decoder does. The numbers are not tuned; they change
# how fast a document is generated, not which.
SPECULATIVE_CONFIG = {
    "method": "ngram",
    "num_speculative_tokens": 8,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 5,
}
SUPPORTED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's `max_lora_rank`


def load(spec: ModelSpec, settings: GenerationSettings, batch_size: int) -> LoadedModel:
    """Loads a model and its adapters into vLLM.

    Args:
        spec: the model and its adapters.
        settings: how requests are sampled by default.
        batch_size: maximum number of documents that are decoded concurrently.

    Raises:
        UserError: when vLLM is not installed, or does not support the model, an adapter or the settings.
    """
    all_settings = [spec.settings(settings, adapter) for adapter in spec.templates]
    for adapter_settings in all_settings:
        check_settings(adapter_settings)
    ranks = [_lora_rank(directory) for directory in spec.adapters.values()]
    config = validate_model(spec)
    model_path = path_or_name(spec.base_model)
    if PretrainedConfig.get_config_dict(model_path)[0].get("model_type") == qwen1.MODEL_TYPE:
        raise UserError(
            f"{spec.base_model}: vLLM does not support first-generation Qwen.",
            hint="Convert it to Qwen2 with `typst-lit convert`.",
        )
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError(
            f"`engine=vllm` needs vLLM ({error}) and a GPU.", hint="pip install 'typst-lit[vllm]'"
        ) from error
    tokenizer = PretrainedBackbone().load_tokenizer(spec.base_model, None, False)
    llm = LLM(**engine_arguments(model_path, ranks, spec.use_4bit, all_settings[0].prompt_lookup, batch_size))
    eos_ids = eos_token_ids(generation_config(model_path, config), tokenizer)
    decoder = VllmDecoder(llm.llm_engine, eos_ids, llm.model_config.max_model_len, spec.adapters)
    return LoadedModel(decoder, tokenizer, spec.templates, spec.contracts, spec.adapter_settings, spec.identity)


def check_settings(settings: GenerationSettings) -> None:
    """Checks that vLLM can sample with these settings.

    Raises:
        UserError: when it cannot.
    """
    if settings.repetition_penalty != 1:
        raise UserError(
            "vLLM's repetition penalty also penalizes the words of the record, whose copying is the task.",
            hint="With `engine=vllm`, use `generation.repetition_penalty=1`.",
        )
    if settings.deterministic:
        raise UserError(
            "vLLM's documents depend on their batch.", hint="With `engine=vllm`, use `generation.deterministic=false`."
        )


def engine_arguments(
    model_path: str, ranks: Sequence[int], use_4bit: bool, prompt_lookup: bool, batch_size: int
) -> dict[str, Any]:
    """Returns the arguments of ``vllm.LLM``.

    Args:
        model_path: hub name or directory of the base model.
        ranks: LoRA ranks of the adapters.
        use_4bit: quantize the base model when it is loaded.
        prompt_lookup: speculate with n-grams of the prompt.
        batch_size: maximum number of documents that are decoded concurrently.

    >>> engine_arguments("Qwen/Qwen3-1.7B", [24], use_4bit=False, prompt_lookup=False, batch_size=8)["max_lora_rank"]
    32
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
        "max_num_seqs": batch_size,
        "generation_config": "vllm",  # each request has its sampling settings; the model's directory does not set any
    }
    if use_4bit:
        arguments["quantization"] = "bitsandbytes"
    if ranks:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_lora_rank(max(ranks))}
    if prompt_lookup:
        arguments["speculative_config"] = SPECULATIVE_CONFIG
    return arguments


def max_lora_rank(rank: int) -> int:
    """Returns the smallest ``max_lora_rank`` of vLLM that accepts adapters of a rank."""
    return next((supported for supported in SUPPORTED_RANKS if rank <= supported), rank)


def sampling_arguments(request: Request, eos_ids: Collection[int]) -> dict[str, Any]:
    """Returns the arguments of ``vllm.SamplingParams`` for a request."""
    check_settings(request.settings)
    (seed,) = np.random.SeedSequence(request.seed).generate_state(1, np.uint64)
    return {
        "temperature": 0.0 if request.settings.is_greedy else request.settings.temperature,
        "top_p": request.settings.top_p,
        "top_k": request.settings.top_k,
        "max_tokens": request.max_tokens,
        "seed": int(seed >> np.uint64(1)),  # vLLM's seeds have 63 bits
        "stop_token_ids": sorted(eos_ids),
        "detokenize": False,  # the ids are decoded as those of the built-in decoder are
    }


def generation_config(model_path: str, config: PretrainedConfig) -> GenerationConfig:
    """Returns the generation config that transformers gives a model it loads from this directory or hub name."""
    try:
        return GenerationConfig.from_pretrained(model_path)
    except OSError:  # the model has no generation_config.json
        return GenerationConfig.from_model_config(config)


class VllmDecoder(BaseDecoder):
    """Decodes requests with vLLM.

    Args:
        engine: a ``vllm.LLMEngine``.
        eos_ids: ids of the EOS tokens.
        max_positions: maximum number of tokens of prompt and document.
        adapters: directories of the adapters, by name.

    Example:
        >>> Generator.load("runs/default", engine="vllm")  # doctest: +SKIP
    """

    def __init__(self, engine: Any, eos_ids: Collection[int], max_positions: int, adapters: dict[str, Path]) -> None:
        self.eos_token_ids = frozenset(eos_ids)
        self._engine = engine
        self._max_positions = max_positions
        self._adapters = adapters
        self._adapter: str | None = None
        self._requests: dict[str, Request] = {}
        self._num_added = 0

    def set_adapter(self, name: str) -> None:
        self._adapter = name

    def add(self, requests: Sequence[Request]) -> None:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        lora_request = None
        if self._adapter is not None:
            lora_id = 1 + list(self._adapters).index(self._adapter)
            lora_request = LoRARequest(self._adapter, lora_id, str(self._adapters[self._adapter]))
        for request in requests:
            request.limit_to_context(self._max_positions)
            arguments = sampling_arguments(request, self.eos_token_ids)
            params = SamplingParams(**arguments, output_kind=RequestOutputKind.FINAL_ONLY)
            self._num_added += 1
            request_id = str(self._num_added)
            prompt = {"prompt_token_ids": list(request.prompt)}
            self._engine.add_request(request_id, prompt, params, lora_request=lora_request)
            self._requests[request_id] = request

    def step(self) -> None:
        for output in self._engine.step():
            if not output.finished or output.request_id not in self._requests:
                continue
            request = self._requests.pop(output.request_id)
            (completion,) = output.outputs
            if completion.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a request with finish_reason {completion.finish_reason!r}")
            request.text.extend([token for token in completion.token_ids if token not in self.eos_token_ids])
            request.finish_reason = completion.finish_reason

    def remove(self, requests: Collection[Request]) -> None:
        for request_id in [request_id for request_id, request in self._requests.items() if request in requests]:
            self._engine.abort_request([request_id])
            del self._requests[request_id]


def _lora_rank(directory: Path) -> int:
    """Returns an adapter's rank.

    Raises:
        UserError: when it is of a type that vLLM does not support.
    """
    rank = plain_lora_rank(directory)
    if rank is None:
        raise UserError(
            f"{directory}: vLLM supports plain LoRA adapters only; this one is of another type.",
            hint="Merge it with `typst-lit export --to merged`, and use the merged model as `model.base_model`.",
        )
    return rank
