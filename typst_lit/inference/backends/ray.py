"""Documents of a million records: Ray Data hands out shards, and a `Generator` on each device makes them.

The unit of work, and of starting again, is a shard (`typst_lit.inference.shards`). What Ray carries is its number: the
records are in a file, and so are the results. When a process or a node is lost, so is the shard that it had in hand;
Ray starts the process again where there is room, and a further round makes what is missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from typst_lit.data.sources import RecordSource
from typst_lit.errors import UserError
from typst_lit.inference.generator import Generator
from typst_lit.inference.shards import Shard, ShardFolder
from typst_lit.progress import LOG_INTERVAL_S

log = logging.getLogger(__name__)
FRUITLESS_ROUNDS = 3  # in a row, and the job is given up


@dataclass(frozen=True)
class Work:
    """What every process of a job must know. It travels to them.

    Attributes:
        load: loads the generator.
        folder: of the shards.
        adapter: which one answers; None for the usual one.
        directory: where paths begin that are not absolute.
    """

    load: Callable[[], Generator]
    folder: ShardFolder
    adapter: str | None
    directory: str


class ShardMaker:
    """The actor on a device: it loads the model once, and makes one shard after the other."""

    def __init__(self, work: Work) -> None:
        self.work = work

    @cached_property
    def generator(self) -> Generator:
        with contextlib.suppress(OSError):  # not on this node: then it is a relative path that is not found
            os.chdir(self.work.directory)
        return self.work.load()

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        """Makes a shard; what goes wrong is answered, as Ray would take it for a fault of the job."""
        (number,) = batch["shard"]
        try:
            answer = asdict(self.work.folder.make(int(number), self.generator, self.work.adapter))
        except torch.AcceleratorError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)  # only a new process can use the device again: Ray starts one
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            answer = {"error": reason, "for_good": isinstance(error, UserError)}
        return {"answer": [json.dumps(answer)]}


def generate_on_ray(
    load: Callable[[], Generator],
    source: RecordSource,
    folder: ShardFolder,
    making: Mapping[str, Any],
    adapter: str | None = None,
    overwrite: bool = False,
    address: str | None = None,
    actors: int | None = None,
) -> None:
    """Generates the documents of all records of a source into a folder of shards; it goes on where it stopped.

    Args:
        load: loads the generator, in each actor.
        source: the records.
        folder: for the results; all nodes must see it, and what ``load`` reads.
        making: what results depend on beside their records.
        adapter: which one answers.
        overwrite: start anew.
        address: of a cluster; without it, the one in ``RAY_ADDRESS``, or else one is started on this machine.
        actors: how many models; by default one a GPU, or without GPUs one a node.

    Raises:
        UserError: when Ray is not there, the folder holds other results, or shards can't be made for good.
    """
    if actors is not None and actors < 1:
        raise UserError(f"--actors must be 1 or more, not {actors}.")
    with _cluster(address) as ray:
        folder.begin({**making, "input": source.fingerprint()}, overwrite)
        count, missing = folder.lay_out(source.rows())
        if len(missing) < count:
            log.info("%d of %d shards are there already.", count - len(missing), count)
        try:
            _make(ray, Work(load, folder, adapter, str(Path.cwd())), count, set(missing), actors)
        finally:
            folder.save()


def _make(ray: Any, work: Work, count: int, missing: set[int], actors: int | None) -> None:
    folder, began, told, before, fruitless = work.folder, time.monotonic(), 0.0, work.folder.total("records"), 0
    while missing:
        reason = "the processes that had them were lost; Ray's logs may say why"
        left = len(missing)
        try:
            for answer in _round(ray, work, sorted(missing), actors):
                if "error" in answer:
                    reason = answer["error"]
                    if answer["for_good"]:
                        raise UserError(reason)
                    continue
                shard = Shard(**answer)
                folder.add(shard)
                missing.discard(shard.first // folder.size)
                if time.monotonic() - told > LOG_INTERVAL_S or not missing:
                    told = time.monotonic()
                    records = folder.total("records")
                    pace = (records - before) / (told - began)
                    log.info("%d of %d shards, %d records, %.2f a second", len(folder.shards), count, records, pace)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
        fruitless = fruitless + 1 if len(missing) == left else 0
        if fruitless == FRUITLESS_ROUNDS:
            raise UserError(f"{len(missing)} of {count} shards could not be made, tried {fruitless} times: {reason}")
        if missing:
            log.warning("%d shards were lost on the way (%s): another round.", len(missing), reason)


def _round(ray: Any, work: Work, numbers: Sequence[int], actors: int | None) -> Iterator[dict[str, Any]]:
    """Has each of these shards made once, by whichever actor is free, and yields the answers that come."""
    most, share = _actors(ray, actors)
    answers = ray.data.from_items(
        [{"shard": number} for number in numbers], override_num_blocks=len(numbers)
    ).map_batches(
        ShardMaker,
        fn_constructor_args=[work],
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=1
        ),
        # a shard that was in hand does not wait for its actor to come back, which may be never: the next round has it
        max_restarts=-1,
        max_task_retries=0,
        **share,
    )
    for batch in answers.iter_batches(batch_size=None, prefetch_batches=0):
        yield from map(json.loads, batch["answer"])


def _actors(ray: Any, wanted: int | None) -> tuple[int, dict[str, float]]:
    """Returns how many actors there are to be, and what Ray is to reserve for each."""
    cores = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = int(ray.cluster_resources().get("GPU", 0))
    most = wanted or gpus or len(cores)
    if gpus:
        return most, {"num_gpus": 1}
    if not cores:
        raise UserError("the Ray cluster has neither GPUs nor processor cores to give.")
    # torch gets as many threads as Ray reserves cores
    return most, {"num_cpus": max(1, int(min(cores)) // math.ceil(most / len(cores)))}


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Connects to a cluster, or starts one on this machine; one that is connected already is used and left."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster would send statistics to Ray's makers
    # Ray's core tells what becomes of actors when objects of this process are lost: they are lost with the job only
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise UserError(f"--engine ray needs Ray ({error}): pip install 'typst-lit[ray]'") from error
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--ray-address {address}: no Ray cluster could be reached ({error}).") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # shards that are lost are made in another round
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # it has no other max_task_retries
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()
