"""Callbacks of a run, one per file.

`EarlyStopping`, `LearningCurve`, `LineProgress` and `GracefulShutdown` work with any module and data. `Throughput`,
`MemoryProfiler` and `ResumableCheckpoint` need what their docstrings name. `AdapterExport`, `ContractLearning`,
`Evaluation` and `PredictionWriter` need a `TypstModule` and a `TypstDataModule`.
"""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.callbacks.adapter_export import AdapterExport as AdapterExport
    from typst_lit.callbacks.contract_learning import ContractLearning as ContractLearning
    from typst_lit.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from typst_lit.callbacks.evaluation import Evaluation as Evaluation
    from typst_lit.callbacks.graceful_shutdown import GracefulShutdown as GracefulShutdown
    from typst_lit.callbacks.learning_curve import LearningCurve as LearningCurve
    from typst_lit.callbacks.learning_curve import diagnose as diagnose
    from typst_lit.callbacks.memory_profiler import MemoryMeter as MemoryMeter
    from typst_lit.callbacks.memory_profiler import MemoryProfiler as MemoryProfiler
    from typst_lit.callbacks.prediction_writer import PredictionWriter as PredictionWriter
    from typst_lit.callbacks.progress import LineProgress as LineProgress
    from typst_lit.callbacks.resumable_checkpoint import ResumableCheckpoint as ResumableCheckpoint
    from typst_lit.callbacks.throughput import Throughput as Throughput

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AdapterExport": "typst_lit.callbacks.adapter_export",
        "ContractLearning": "typst_lit.callbacks.contract_learning",
        "EarlyStopping": "typst_lit.callbacks.early_stopping",
        "Evaluation": "typst_lit.callbacks.evaluation",
        "GracefulShutdown": "typst_lit.callbacks.graceful_shutdown",
        "LearningCurve": "typst_lit.callbacks.learning_curve",
        "LineProgress": "typst_lit.callbacks.progress",
        "MemoryMeter": "typst_lit.callbacks.memory_profiler",
        "MemoryProfiler": "typst_lit.callbacks.memory_profiler",
        "PredictionWriter": "typst_lit.callbacks.prediction_writer",
        "ResumableCheckpoint": "typst_lit.callbacks.resumable_checkpoint",
        "Throughput": "typst_lit.callbacks.throughput",
        "diagnose": "typst_lit.callbacks.learning_curve",
    },
)
