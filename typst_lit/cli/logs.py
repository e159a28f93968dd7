"""What is shown on standard error: this package's log records, and none of the warnings of its dependencies."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from typst_lit.cli.messages import translate

# Warnings of dependencies about each other's code, or about what is intended here. Nobody who sees one could act on it.
IGNORED_WARNINGS = (
    "`loftq_config` specified",  # PEFT, about its own default
    "`is_gradient_checkpointing` is deprecated",  # PEFT, about transformers
    "`gradient_checkpointing_enable` is deprecated",
    "Position ids are not supported for parameter efficient tuning",  # PEFT, which computes them itself
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning, about torch
    "Total length of `(list|DataLoader)` across ranks is zero",  # nothing to validate or predict: logged elsewhere
    "You defined a `validation_step` but have no `val_dataloader`",  # likewise
    ".*your dataloader is not resumable",  # the data module is
    ".*does not have many workers",  # batches are rows of a table: workers would only cost memory
)
# Loggers that report what this package reports itself
QUIET_LOGGERS = {
    "lightning.pytorch.utilities.rank_zero": logging.WARNING,
    "lightning.fabric.utilities.seed": logging.WARNING,
    "lightning.pytorch.trainer.connectors.checkpoint_connector": logging.WARNING,
}
PROGRESS_BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


def set_up_logging() -> None:
    """Shows this package's log records as plain text on standard error, of the first process of a run only."""
    log = logging.getLogger("typst_lit")
    if not log.handlers:
        handler = logging.StreamHandler(_StandardError())
        handler.setFormatter(_MessageFormatter())
        log.addHandler(handler)
        log.propagate = False
    is_first = os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"
    log.setLevel(logging.INFO if is_first else logging.ERROR)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    if not sys.stderr.isatty():
        for variable in PROGRESS_BARS:
            os.environ.setdefault(variable, "1")


class _MessageFormatter(logging.Formatter):
    """Plain messages that name the flags of the command that runs; warnings are marked as such."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        return prefix + translate(super().format(record))


class _StandardError:
    """Standard error at the time of a message: tests and notebooks replace ``sys.stderr``."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
