"""From Typst source to PDF, page text and page images, in sandboxed processes."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.typesetting.repairs import Repair as Repair
    from typst_lit.typesetting.repairs import repair as repair
    from typst_lit.typesetting.results import CompileResult as CompileResult
    from typst_lit.typesetting.results import Diagnostic as Diagnostic
    from typst_lit.typesetting.results import PageText as PageText
    from typst_lit.typesetting.typesetter import Typesetter as Typesetter

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "CompileResult": "typst_lit.typesetting.results",
        "Diagnostic": "typst_lit.typesetting.results",
        "PageText": "typst_lit.typesetting.results",
        "Repair": "typst_lit.typesetting.repairs",
        "Typesetter": "typst_lit.typesetting.typesetter",
        "repair": "typst_lit.typesetting.repairs",
    },
)
