"""Trained models for other engines: merged weights, GGUF, Ollama, vLLM and the Hugging Face hub."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.exporting.comparison import Comparison as Comparison
    from typst_lit.exporting.comparison import compare_models as compare_models
    from typst_lit.exporting.comparison import mean_loss as mean_loss
    from typst_lit.exporting.export import Export as Export
    from typst_lit.exporting.export import TrainedModel as TrainedModel
    from typst_lit.exporting.export import export_gguf as export_gguf
    from typst_lit.exporting.export import export_merged as export_merged
    from typst_lit.exporting.export import export_ollama as export_ollama
    from typst_lit.exporting.export import export_vllm as export_vllm
    from typst_lit.exporting.export import prepare_for_hub as prepare_for_hub
    from typst_lit.exporting.targets import push_to_hub as push_to_hub

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Comparison": "typst_lit.exporting.comparison",
        "Export": "typst_lit.exporting.export",
        "TrainedModel": "typst_lit.exporting.export",
        "compare_models": "typst_lit.exporting.comparison",
        "export_gguf": "typst_lit.exporting.export",
        "export_merged": "typst_lit.exporting.export",
        "export_ollama": "typst_lit.exporting.export",
        "export_vllm": "typst_lit.exporting.export",
        "mean_loss": "typst_lit.exporting.comparison",
        "prepare_for_hub": "typst_lit.exporting.export",
        "push_to_hub": "typst_lit.exporting.targets",
    },
)
