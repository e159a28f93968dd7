"""A signal ends the step, and the handlers from before are restored. Saving is tested with the command line."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from tests._compat.test_lightning import Regression
from typst_lit.callbacks import GracefulShutdown
from typst_lit.errors import RunStopped


class SendSignal(Callback):
    """Sends a signal to this process within the first micro-batch of the second step."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.num_batches += 1
        if batch_idx == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_stops(tmp_path, number, status) -> None:
    handler = signal.getsignal(number)
    sender = SendSignal(number)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=2, num_sanity_val_steps=0,
        callbacks=[sender, GracefulShutdown()],
    )  # fmt: skip
    with pytest.raises(RunStopped, match=f"{number.name} after step 2; there is no ResumableCheckpoint") as stopped:
        trainer.fit(Regression(), DataLoader(torch.ones(8, 1)), DataLoader(torch.ones(1, 1)))
    assert stopped.value.status == status and not stopped.value.resumable
    assert sender.num_batches == 4  # both micro-batches of the second step
    assert signal.getsignal(number) is handler
