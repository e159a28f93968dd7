"""The private API of Lightning still means what `typst_lit._compat.lightning` says."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from typst_lit._compat.lightning import optimizer_stepped, validation_due

NUM_BATCHES = 5


class Regression(LightningModule):
    """One weight; enough for the loops to run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(Callback):
    """Records, after each training batch, what is predicted and what then happens."""

    def __init__(self) -> None:
        self.predicted_steps: list[bool] = []
        self.steps: list[bool] = []
        self.predicted_validations: list[bool] = []
        self.validations: list[bool] = []
        self._step = 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.predicted_steps.append(optimizer_stepped(trainer))
        self.steps.append(trainer.global_step > self._step)
        self._step = trainer.global_step
        self.predicted_validations.append(validation_due(trainer))
        self.validations.append(False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations[-1] = True


def fit(recorder: Recorder, **options: Any) -> None:
    loader = DataLoader(torch.ones(NUM_BATCHES, 1))
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[recorder], **options,
    )  # fmt: skip
    trainer.fit(Regression(), loader, DataLoader(torch.ones(1, 1)))


def test_a_batch_steps_when_its_gradients_are_accumulated_or_the_epoch_ends() -> None:
    recorder = Recorder()
    fit(recorder, accumulate_grad_batches=2)
    assert recorder.predicted_steps == recorder.steps == 2 * [False, True, False, True, True]


def test_a_validation_is_due_where_it_then_takes_place() -> None:
    recorder = Recorder()
    fit(recorder, val_check_interval=2)
    assert recorder.predicted_validations == recorder.validations == 2 * [False, True, False, True, False]
    recorder = Recorder()
    fit(recorder, check_val_every_n_epoch=2)
    assert recorder.predicted_validations == recorder.validations == 5 * [False] + 4 * [False] + [True]
