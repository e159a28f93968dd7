"""From records to documents: `Generator`, the engine beneath it, and results on disk."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.inference.attempts import GeneratedDocument as GeneratedDocument
    from typst_lit.inference.generator import Generator as Generator
    from typst_lit.inference.generator import inference_from_dict as inference_from_dict
    from typst_lit.inference.generator import inference_from_json_file as inference_from_json_file
    from typst_lit.inference.generator import load_model_and_tokenizer as load_model_and_tokenizer
    from typst_lit.inference.sampling import GenerationSettings as GenerationSettings

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "GeneratedDocument": "typst_lit.inference.attempts",
        "GenerationSettings": "typst_lit.inference.sampling",
        "Generator": "typst_lit.inference.generator",
        "inference_from_dict": "typst_lit.inference.generator",
        "inference_from_json_file": "typst_lit.inference.generator",
        "load_model_and_tokenizer": "typst_lit.inference.generator",
    },
)
