"""Other ways to run a model than in this process: on a Ray cluster, and with vLLM."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.inference.backends.ray import generate_on_ray as generate_on_ray
    from typst_lit.inference.backends.vllm import VllmDecoder as VllmDecoder

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "VllmDecoder": "typst_lit.inference.backends.vllm",
        "generate_on_ray": "typst_lit.inference.backends.ray",
    },
)
