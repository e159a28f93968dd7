"""Private API of Lightning, as read in 2.6.6: one function per use, so that an update can break it in one file only."""

from __future__ import annotations

from lightning.pytorch import Trainer


def optimizer_stepped(trainer: Trainer) -> bool:
    """Returns whether the training batch that just ended completed an optimizer step.

    Lightning has no public counterpart for use in ``on_train_batch_end``; its own ``ThroughputMonitor`` calls the same
    method.
    """
    return not trainer.fit_loop._should_accumulate()


def validation_due(trainer: Trainer) -> bool:
    """Returns whether a validation follows the training batch that just ended, before the next batch.

    The rule depends on ``val_check_interval``, ``check_val_every_n_epoch``, ``limit_train_batches`` and
    ``should_stop``; asking the loop itself keeps it from being written twice.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None  # set while an epoch runs
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
