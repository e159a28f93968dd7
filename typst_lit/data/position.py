"""Where a run is in its training data, so that a resumed run continues with the next batch."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Trainer

log = logging.getLogger(__name__)


class TrainingPosition:
    """The epoch, and how many batches of all processes are done in it.

    The data module saves it, and not the loader: Lightning restores the state of a loader only if the run stopped
    within an epoch, and the workers of a loader fetch batches before the trainer knows its epoch.
    """

    def __init__(self) -> None:
        self._start = (0, 0)
        self._order: str | None = None

    def state_dict(self, trainer: Trainer, order: str) -> dict[str, Any]:
        """Returns the position of a trainer. The end of an epoch is the start of the next.

        Args:
            trainer: the trainer of the run.
            order: a key of all that decides the order of the batches, apart from the epoch.
        """
        loop: Any = trainer.fit_loop
        epoch, batches = loop.epoch_progress.current.started - 1, loop.epoch_loop.batch_progress.current.processed
        if batches >= trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches * trainer.world_size, "order": order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the position to resume from."""
        self._start = (state_dict["epoch"], state_dict["batches"])
        self._order = state_dict["order"]

    def start(self, order: str) -> tuple[int, int]:
        """Returns the epoch to start in, and the batches of all processes to skip in it."""
        if self._order not in (None, order):
            log.warning(
                "The data, its lengths or the batch size changed since the checkpoint: this epoch continues in another "
                "order, and some of its samples may be seen twice or not at all."
            )
        return self._start
