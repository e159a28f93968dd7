"""An HTTP server and a web page around a `Generator`."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.serving.app import create_app as create_app
    from typst_lit.serving.service import GenerationError as GenerationError
    from typst_lit.serving.service import GenerationService as GenerationService
    from typst_lit.serving.service import QueueFullError as QueueFullError

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "GenerationError": "typst_lit.serving.service",
        "GenerationService": "typst_lit.serving.service",
        "QueueFullError": "typst_lit.serving.service",
        "create_app": "typst_lit.serving.app",
    },
)
