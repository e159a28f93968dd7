"""From records to documents: `Generator`, the engine beneath it, and results on disk."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.inference.attempts import GeneratedDocument as GeneratedDocument
    from typst_lit.inference.engine import Engine as Engine
    from typst_lit.inference.generator import GenerationFailure as GenerationFailure
    from typst_lit.inference.generator import Generator as Generator
    from typst_lit.inference.guide import inference_from_dict as inference_from_dict
    from typst_lit.inference.guide import inference_from_json_file as inference_from_json_file
    from typst_lit.inference.guide import load_model_and_tokenizer as load_model_and_tokenizer
    from typst_lit.inference.records import InputRecord as InputRecord
    from typst_lit.inference.records import read_records as read_records
    from typst_lit.inference.request import Completion as Completion
    from typst_lit.inference.request import Request as Request
    from typst_lit.inference.settings import GenerationSettings as GenerationSettings

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Completion": "typst_lit.inference.request",
        "Engine": "typst_lit.inference.engine",
        "GeneratedDocument": "typst_lit.inference.attempts",
        "GenerationFailure": "typst_lit.inference.generator",
        "GenerationSettings": "typst_lit.inference.settings",
        "Generator": "typst_lit.inference.generator",
        "InputRecord": "typst_lit.inference.records",
        "Request": "typst_lit.inference.request",
        "inference_from_dict": "typst_lit.inference.guide",
        "inference_from_json_file": "typst_lit.inference.guide",
        "load_model_and_tokenizer": "typst_lit.inference.guide",
        "read_records": "typst_lit.inference.records",
    },
)
