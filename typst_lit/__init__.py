"""Fine-tune a small Qwen model on pairs of record and Typst source, and turn new records into documents.

The names below are the public API. They are imported at first use: importing `typst_lit` loads neither torch nor
Lightning.
"""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach
from typst_lit.version import __version__

if TYPE_CHECKING:
    from typst_lit.cli.fit import TypstCLI as TypstCLI
    from typst_lit.data.datamodule import TypstDataModule as TypstDataModule
    from typst_lit.data.prompts import PromptTemplate as PromptTemplate
    from typst_lit.data.sources import RecordSource as RecordSource
    from typst_lit.errors import UserError as UserError
    from typst_lit.inference.attempts import GeneratedDocument as GeneratedDocument
    from typst_lit.inference.generator import Generator as Generator
    from typst_lit.inference.settings import GenerationSettings as GenerationSettings
    from typst_lit.metrics.documents import DocumentMetric as DocumentMetric
    from typst_lit.model.backbones import Backbone as Backbone
    from typst_lit.model.module import TypstModule as TypstModule
    from typst_lit.typesetting.results import CompileResult as CompileResult
    from typst_lit.typesetting.typesetter import Typesetter as Typesetter

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Backbone": "typst_lit.model.backbones",
        "CompileResult": "typst_lit.typesetting.results",
        "DocumentMetric": "typst_lit.metrics.documents",
        "GeneratedDocument": "typst_lit.inference.attempts",
        "GenerationSettings": "typst_lit.inference.settings",
        "Generator": "typst_lit.inference.generator",
        "PromptTemplate": "typst_lit.data.prompts",
        "RecordSource": "typst_lit.data.sources",
        "TypstCLI": "typst_lit.cli.fit",
        "TypstDataModule": "typst_lit.data.datamodule",
        "TypstModule": "typst_lit.model.module",
        "Typesetter": "typst_lit.typesetting.typesetter",
        "UserError": "typst_lit.errors",
    },
)
__all__ += ["__version__"]
