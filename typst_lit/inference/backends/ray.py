"""Documents for millions of records: Ray Data distributes shards, and a `Generator` on each device writes them.

The unit of work, and of retrying, is a shard (`typst_lit.inference.shards`). Ray transfers only its index: the records
are in a file, and so are the results. When a process or a node is lost, so is the shard that it was working on; Ray
starts the process again where resources are free, and another round generates what is missing.
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

from typst_lit.data.sources import FileSource, RecordSource
from typst_lit.errors import UserError, plural
from typst_lit.inference.generator import Generator
from typst_lit.inference.outputs import LOCK_HINT
from typst_lit.inference.shards import Shard, ShardDirectory
from typst_lit.locking import FileLock
from typst_lit.manifest import check_separate
from typst_lit.progress import Every

log = logging.getLogger(__name__)
MAX_ROUNDS_WITHOUT_PROGRESS = 3


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker needs; it is sent to all of them.

    Attributes:
        load: loads the generator.
        directory: where the shards are.
        adapter: the name of the adapter; None for the default adapter.
        working_directory: what relative paths are relative to.
    """

    load: Callable[[], Generator]
    directory: ShardDirectory
    adapter: str | None
    working_directory: str


class ShardWorker:
    """The Ray actor on a device: it loads the model once, and writes one shard per call."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    @cached_property
    def generator(self) -> Generator:
        """The generator, loaded at the first shard."""
        with contextlib.suppress(OSError):  # it does not exist on this node: absolute paths still work
            os.chdir(self.settings.working_directory)
        return self.settings.load()

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        """Writes a shard and returns it as JSON; returns errors, too, as Ray would stop the job for an exception."""
        (index,) = batch["shard"]
        try:
            reply = asdict(self.settings.directory.generate(int(index), self.generator, self.settings.adapter))
        except torch.AcceleratorError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)  # only a new process can use the device again: Ray starts one
        except Exception as error:
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            reply = {"error": message, "is_permanent": isinstance(error, UserError)}
        return {"reply": [json.dumps(reply)]}


def generate_on_ray(
    load: Callable[[], Generator],
    source: RecordSource,
    directory: ShardDirectory,
    provenance: Mapping[str, Any],
    adapter: str | None = None,
    overwrite: bool = False,
    address: str | None = None,
    num_actors: int | None = None,
) -> None:
    """Generates documents for all records of a source into a directory of shards; resumes what was interrupted.

    Args:
        load: loads the generator, in each actor.
        source: the records.
        directory: where the results go; all nodes must see it, as well as the files that ``load`` reads.
        provenance: what results depend on in addition to their records.
        adapter: the name of the adapter; None for the default adapter.
        overwrite: start again from scratch.
        address: of a cluster; by default the one in ``RAY_ADDRESS``, or else one is started on this machine.
        num_actors: number of models; by default one per GPU, or without GPUs one per node.

    Raises:
        UserError: when Ray is not installed, the directory has other files or other results, another process writes
            it, or shards fail repeatedly.

    Example:
        >>> from functools import partial
        >>> from typst_lit.data.sources import FileSource
        >>> directory = ShardDirectory(Path("documents").absolute(), shard_size=1000)
        >>> load = partial(Generator.load, "runs/default")
        >>> generate_on_ray(load, FileSource("records.parquet"), directory, {"model": "runs/default"})  # doctest: +SKIP
    """
    if num_actors is not None and num_actors < 1:
        raise UserError(f"must be 1 or more, not {num_actors}.", setting="actors")
    if isinstance(source, FileSource):
        check_separate(directory.path, [source.path])
    directory.check()
    directory.path.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.path, LOCK_HINT), _connect(address) as ray:
        directory.start({**provenance, "input": source.fingerprint()}, overwrite)
        num_shards, missing = directory.split(source.rows())
        if len(missing) < num_shards:
            log.info("%d of %s already exist.", num_shards - len(missing), plural(num_shards, "shard"))
        settings = WorkerSettings(load, directory, adapter, str(Path.cwd()))
        try:
            _run_rounds(ray, settings, num_shards, set(missing), num_actors)
        finally:
            directory.write_manifest()


def _run_rounds(ray: Any, settings: WorkerSettings, num_shards: int, missing: set[int], num_actors: int | None) -> None:
    """Generates the missing shards, in as many rounds as it takes.

    Raises:
        UserError: when an error is permanent, or `MAX_ROUNDS_WITHOUT_PROGRESS` are over.
    """
    progress = _Progress(settings.directory, num_shards)
    num_fruitless = 0
    while missing:
        num_before = len(missing)
        reason = "their processes were lost; see Ray's logs"
        try:
            for reply in _run_round(ray, settings, sorted(missing), num_actors):
                if "error" in reply:
                    reason = reply["error"]
                    if reply["is_permanent"]:
                        raise UserError(reason)
                    continue
                shard = Shard(**reply)
                settings.directory.add(shard)
                missing.discard(shard.first // settings.directory.shard_size)
                progress.log(is_last=not missing)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
        num_fruitless = num_fruitless + 1 if len(missing) == num_before else 0
        if num_fruitless == MAX_ROUNDS_WITHOUT_PROGRESS:
            raise UserError(
                f"{len(missing)} of {plural(num_shards, 'shard')} could not be generated in {num_fruitless} attempts: "
                f"{reason}"
            )
        if missing:
            log.warning("Retrying %s that failed: %s.", plural(len(missing), "shard"), reason)


class _Progress:
    """Logs every few seconds how far a job is."""

    def __init__(self, directory: ShardDirectory, num_shards: int) -> None:
        self._directory = directory
        self._num_shards = num_shards
        self._num_records_before = directory.total("records")
        self._start = time.monotonic()
        self._log_due = Every()

    def log(self, is_last: bool) -> None:
        if not self._log_due() and not is_last:
            return
        num_records = self._directory.total("records")
        rate = (num_records - self._num_records_before) / (time.monotonic() - self._start)
        num_done = len(self._directory.shards)
        log.info("%d of %d shards, %d records, %.2f records/s", num_done, self._num_shards, num_records, rate)


def _run_round(
    ray: Any, settings: WorkerSettings, indices: Sequence[int], num_actors: int | None
) -> Iterator[dict[str, Any]]:
    """Lets the actors generate each of these shards once, and yields the replies that arrive."""
    num_actors, resources = _actor_resources(ray, num_actors)
    shards = ray.data.from_items([{"shard": index} for index in indices], override_num_blocks=len(indices))
    replies = shards.map_batches(
        ShardWorker,
        fn_constructor_args=[settings],
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=num_actors, initial_size=num_actors, max_tasks_in_flight_per_actor=1
        ),
        # A shard of a lost actor is left to the next round: waiting for the actor to come back could take forever.
        max_restarts=-1,
        max_task_retries=0,
        **resources,
    )
    for batch in replies.iter_batches(batch_size=None, prefetch_batches=0):
        yield from map(json.loads, batch["reply"])


def _actor_resources(ray: Any, num_actors: int | None) -> tuple[int, dict[str, float]]:
    """Returns the number of actors, and the resources that Ray reserves for each."""
    node_cpus = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    num_actors = num_actors or num_gpus or len(node_cpus)
    if num_gpus:
        return num_actors, {"num_gpus": 1}
    if not node_cpus:
        raise UserError("the Ray cluster has neither GPUs nor CPUs.")
    # torch uses as many threads as Ray reserves CPUs
    return num_actors, {"num_cpus": max(1, int(min(node_cpus)) // math.ceil(num_actors / len(node_cpus)))}


@contextlib.contextmanager
def _connect(address: str | None) -> Iterator[Any]:
    """Connects to a cluster, or starts one on this machine; an existing connection is used and left open."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise a local cluster reports usage to Ray's developers
    # silences warnings about the actors of objects that are lost with this process: they end with the job
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise UserError(f"`engine=ray` needs Ray ({error}).", hint="pip install 'typst-lit[ray]'") from error
    is_connected = ray.is_initialized()
    if not is_connected:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"no Ray cluster at {address} ({error}).", setting="ray_address") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # lost shards are generated in another round
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # max_task_retries has no other way
    try:
        yield ray
    finally:
        if not is_connected:
            ray.shutdown()
