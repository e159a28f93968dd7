"""The report of an evaluation, as HTML and as JSON."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.reporting.report import Report as Report

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Report": "typst_lit.reporting.report",
    },
)
