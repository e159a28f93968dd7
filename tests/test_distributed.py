"""Several ranks train like one: real processes that use gloo, started by Lightning, by torchrun and as by SLURM."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAINED, HELD_OUT = 21, 5


@pytest.fixture
def args(pairs, tiny_model, tmp_path) -> list[str]:
    """A fit of 21 records in batches of 2: 11 batches, which neither 2 nor 4 ranks can share evenly."""
    for name, first, count in (("train", 0, TRAINED), ("val", TRAINED, HELD_OUT)):
        records = [
            {**pair, "input": {**pair["input"], "project_title": f"Project {index}"}}
            for index, pair in ((index, pairs[index % len(pairs)]) for index in range(first, first + count))
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    return [
        "fit", "--data.path", str(tmp_path / "train.json"), "--data.val_path", str(tmp_path / "val.json"),
        "--model.base_model", str(tiny_model), "--data.batch_size", "2", "--trainer.max_epochs", "2",
        "--model.adapter.lora_dropout", "0", "--model.learning_rate", "1e-2", "--trainer.accelerator", "cpu",
        "--model.schedule", "constant", "--model.warmup_steps", "0", "--eval.every_n_epochs", "0",
    ]  # fmt: skip


def fit(args: list[str], run: Path, world_size: int, *more: object, accumulate: int, launcher: str = "lightning"):
    """Runs a fit whose micro-batches and losses are written next to its directory."""
    flags = [
        "--run_dir", run, "--trainer.devices", world_size, "--trainer.accumulate_grad_batches", accumulate,
        *(["--trainer.strategy", "ddp"] if world_size > 1 else []),
        "--trainer.callbacks+=tests.fault_injection.RecordOrder", f"--trainer.callbacks.path={run}.order",
        "--trainer.callbacks+=tests.fault_injection.RecordLosses", f"--trainer.callbacks.path={run}.losses", *more,
    ]  # fmt: skip
    command = [sys.executable, "-m", "typst_lit"]
    if launcher == "torchrun":
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(world_size),
            "-m",
            "typst_lit",
        ]
    return subprocess.run(
        [*command, *args, *map(str, flags)], capture_output=True, text=True, check=False, env=ONE_THREAD, timeout=300
    )


def losses(run: Path) -> dict[tuple[int, str], float]:
    lines = [line.split() for line in Path(f"{run}.losses").read_text().splitlines()]
    return {(int(step), name): float(loss) for step, name, loss in lines}


def order(run: Path) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in Path(f"{run}.order").read_text().splitlines()]


def adapter(run: Path) -> dict:
    return load_file(run / "adapter/last/adapter_model.safetensors")


def assert_same_training(one: Path, other: Path) -> None:
    losses_of_one, losses_of_other = losses(one), losses(other)
    assert losses_of_one.keys() == losses_of_other.keys()
    for step, loss in losses_of_one.items():
        assert losses_of_other[step] == pytest.approx(loss, rel=1e-3), step
    weights_of_one, weights_of_other = adapter(one), adapter(other)
    assert any(value.any() for name, value in weights_of_one.items() if "lora_B" in name)
    for name, value in weights_of_one.items():
        # Adam divides by the gradient's size, so where that is close to 0 a rounding error can flip the sign.
        assert (weights_of_other[name] - value).norm() <= 0.02 * value.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("world_size", [2, 4])
def test_several_ranks_train_like_one(args, tmp_path, world_size, packing) -> None:
    more = ["--data.packing", str(packing).lower()]
    alone = fit(args, tmp_path / "one", 1, *more, accumulate=4)
    assert alone.returncode == 0, alone.stderr
    together = fit(args, tmp_path / "all", world_size, *more, accumulate=4 // world_size)
    assert together.returncode == 0, together.stderr
    assert_same_training(tmp_path / "one", tmp_path / "all")
    seen = Counter(record for batch in order(tmp_path / "all") for record in batch)
    assert len(seen) == TRAINED and set(seen.values()) == {2}  # once per epoch
    assert Counter(order(tmp_path / "one")) == Counter(b for b in order(tmp_path / "all") if b)


@pytest.mark.slow
def test_torchrun_starts_the_ranks_as_well(args, tmp_path) -> None:
    alone = fit(args, tmp_path / "one", 1, accumulate=2)
    together = fit(args, tmp_path / "all", 2, accumulate=1, launcher="torchrun")
    assert together.returncode == 0, together.stderr
    assert alone.returncode == 0, alone.stderr
    assert_same_training(tmp_path / "one", tmp_path / "all")


@pytest.mark.slow
def test_slurm_starts_the_ranks_itself(args, tmp_path) -> None:
    """As by srun: one process per task, with its rank in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [
        *args, "--run_dir", tmp_path / "run", "--trainer.devices", 2, "--trainer.strategy", "ddp",
        "--trainer.accumulate_grad_batches", 1,
    ]  # fmt: skip
    tasks = []
    for rank in range(2):
        environment = {
            "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NNODES": "1",
            "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-m", "typst_lit", *map(str, flags)]
        tasks.append(subprocess.Popen(command, env=ONE_THREAD | environment, stderr=subprocess.PIPE, text=True))
    errors = [task.communicate(timeout=300)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], errors
    assert (tmp_path / "run/adapter/best/adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2), (4, 2), (2, 4)])
def test_a_run_is_resumed_on_another_number_of_ranks(args, tmp_path, before, after) -> None:
    uninterrupted = fit(args, tmp_path / "uninterrupted", 1, accumulate=4)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    # 11 micro-batches an epoch are 3 steps; the first part ends within the second epoch.
    for steps, world_size, more in ((4, before, []), (-1, after, ["--ckpt_path", "last"])):
        part = fit(
            args, tmp_path / "parts", world_size, "--trainer.max_steps", steps, "--checkpoint.every_n_steps", 1,
            *more, accumulate=4 // world_size,
        )  # fmt: skip
        assert part.returncode == 0, part.stderr
    assert_same_training(tmp_path / "uninterrupted", tmp_path / "parts")
    seen = Counter(record for batch in order(tmp_path / "parts") for record in batch)
    assert len(seen) == TRAINED and set(seen.values()) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_dies_all_end_and_the_run_can_be_resumed(args, tmp_path, rank) -> None:
    kill = [
        "--trainer.callbacks+=tests.fault_injection.KillRank", f"--trainer.callbacks.rank={rank}",
        "--trainer.callbacks.batch=3", "--checkpoint.every_n_steps", "1",
    ]  # fmt: skip
    began = time.monotonic()
    died = fit(args, tmp_path / "run", 2, *kill, accumulate=1)
    assert died.returncode != 0
    assert time.monotonic() - began < 120
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path / "run").encode() in _read(p)]
    resumed = fit(args, tmp_path / "run", 2, "--ckpt_path", "last", accumulate=1)
    assert resumed.returncode == 0, resumed.stderr
    uninterrupted = fit(args, tmp_path / "uninterrupted", 2, accumulate=1)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    for name, value in adapter(tmp_path / "uninterrupted").items():
        assert value.equal(adapter(tmp_path / "run")[name]), name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["full", "none"])
def test_a_sharded_base_model_trains_like_an_unsharded_one(args, tmp_path, checkpointing) -> None:
    more = ["--model.use_4bit", "false", "--model.gradient_checkpointing", checkpointing]
    alone = fit(args, tmp_path / "one", 1, *more, accumulate=4)
    assert alone.returncode == 0, alone.stderr
    sharded = fit(args, tmp_path / "all", 2, *more, "--model.shard_base", "true", accumulate=2)
    assert sharded.returncode == 0, sharded.stderr
    assert_same_training(tmp_path / "one", tmp_path / "all")


def test_4_bit_weights_are_not_sharded(run, args) -> None:
    result = run(*args, "--model.shard_base", "true")
    assert result.status != 0 and "--model.use_4bit false" in result.err


def test_one_device_has_nothing_to_shard_over(run, args) -> None:
    result = run(*args, "--model.shard_base", "true", "--model.use_4bit", "false")
    assert result.status == 1 and "--trainer.devices 2" in result.err and "Loading" not in result.err
