"""The data loader, and what it says when a process that prepares batches hangs or dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from torch.utils.data import DataLoader

from typst_lit.errors import UserError


class WatchedLoader(DataLoader[Any]):
    """A DataLoader of a data set with an ``origin(index)``, whose batch sampler gives the same batches again.

    DataLoader's own ``timeout`` is of no use here: it doesn't cover the tensors' way out of a worker, which is by a
    connection to it, and waits for ever where the whole process stands still.

    Args:
        patience: seconds to wait for a batch of a worker; 0 waits for ever.
        args, options: those of DataLoader.
    """

    def __init__(self, *args: Any, patience: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.patience = patience

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = super().__iter__()
        workers = getattr(batches, "_workers", [])
        for place in count():
            alarm = _Alarm(workers, self.patience)
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                dead = not all(worker.is_alive() for worker in workers)  # the error may be a broken connection to it
                if not (alarm.rang or dead or _is_lost_worker(error)):
                    raise
                what = f"no answer for {self.patience:g} s" if alarm.rang else f"one died: {error}"
                try:
                    fault = self._fault(place, what)
                except RuntimeError as another:  # torch tells a worker's death wherever this thread is, once
                    if not _is_lost_worker(another):
                        raise
                    fault = self._fault(place, what)
                raise fault from error
            finally:
                alarm.off()
            yield batch

    def _fault(self, place: int, what: str) -> UserError:
        dataset: Any = self.dataset
        samples: Any = next(islice(iter(self.batch_sampler or []), place, None), [])
        names = "\n".join(f"  {dataset.origin(index)}" for index in samples)
        return UserError(
            f"the processes that prepare batches failed ({what}) at these samples:\n{names}\n--data.num_workers 0 "
            "prepares batches in the training process, and shows what goes wrong; --data.worker_timeout sets how long "
            "they may take. Go on from the last checkpoint with --ckpt_path last."
        )


def _is_lost_worker(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


class _Alarm:
    """Kills processes that keep one waiting: that ends the wait."""

    def __init__(self, workers: list[Any], seconds: float) -> None:
        self.rang = False
        self.workers = workers
        self.timer = threading.Timer(seconds, self._ring)
        self.timer.daemon = True
        if workers and seconds:
            self.timer.start()

    def _ring(self) -> None:
        self.rang = True
        for worker in self.workers:
            worker.kill()

    def off(self) -> None:
        self.timer.cancel()
