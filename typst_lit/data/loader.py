"""A data loader that stops the run with a helpful error if a worker process hangs or dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

from torch.utils.data import DataLoader

from typst_lit._compat.torch import loader_workers
from typst_lit.errors import UserError


class TimeoutDataLoader(DataLoader[Any]):
    """A DataLoader whose error names the samples of the batch that a worker was too slow for, or died at.

    The dataset has a method ``origin(index)``, and iterating over the batch sampler again gives the same batches.

    DataLoader's own ``timeout`` does not cover the transfer of tensors: they come over a connection to the worker, and
    if the worker process is stopped, the training process waits for it forever.

    Args:
        args: the arguments of DataLoader.
        worker_timeout_s: seconds to wait for a batch of a worker; 0 waits forever.
        options: the keyword arguments of DataLoader.
    """

    def __init__(self, *args: Any, worker_timeout_s: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.worker_timeout_s = worker_timeout_s

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = super().__iter__()
        workers = loader_workers(batches)
        for index in count():
            timeout = _WorkerTimeout(workers, self.worker_timeout_s)
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                has_dead_worker = not all(worker.is_alive() for worker in workers)  # the error may be its connection's
                if not (timeout.expired or has_dead_worker or _is_worker_death(error)):
                    raise
                reason = f"no answer for {self.worker_timeout_s:g} s" if timeout.expired else f"one died: {error}"
                try:
                    worker_error = self._worker_error(index, reason)
                except RuntimeError as death:  # torch reports a worker's death once, wherever this thread is
                    if not _is_worker_death(death):
                        raise
                    worker_error = self._worker_error(index, reason)
                raise worker_error from error
            finally:
                timeout.cancel()
            yield batch

    def _worker_error(self, batch_index: int, reason: str) -> UserError:
        dataset: Any = self.dataset
        sample_indices: Any = next(islice(iter(self.batch_sampler or []), batch_index, None), [])
        origins = "\n".join(f"  {dataset.origin(index)}" for index in sample_indices)
        return UserError(
            f"the processes that prepare batches failed ({reason}) at these samples:\n{origins}",
            hint="`data.num_workers=0` prepares batches in the training process and shows the cause; "
            "`data.worker_timeout_s` is the time limit per batch. Resume from the last checkpoint with "
            "`ckpt_path=last`.",
        )


def _is_worker_death(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


class _WorkerTimeout:
    """Kills the workers after a time, which ends the wait for their batch."""

    def __init__(self, workers: Sequence[Any], timeout_s: float) -> None:
        self.expired = False
        self._workers = workers
        self._timer = threading.Timer(timeout_s, self._kill_workers)
        self._timer.daemon = True
        if workers and timeout_s:
            self._timer.start()

    def _kill_workers(self) -> None:
        self.expired = True
        for worker in self._workers:
            worker.kill()

    def cancel(self) -> None:
        self._timer.cancel()
