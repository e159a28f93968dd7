"""`generate --engine ray` on real local clusters."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import SAMPLES
from typst_lit.contract import TextContract
from typst_lit.data.prompts import ReportPrompt
from typst_lit.model.locations import METADATA_FILE

ray: Any = pytest.importorskip("ray", reason="needs Ray: pip install 'typst-lit[ray]'")
FLAGS = ["--no-4bit", "--max-tokens", 30, "--seed", 3, "--temperature", 1.5]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of one node with CPUs for two actors, for all quick tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def write_records(path: Path, count: int) -> Path:
    """Writes different short records as JSON lines."""
    with path.open("w") as stream:
        for index in range(count):
            record = json.loads(SAMPLES.read_text())[index % 3]["input"]
            short = {**record, "project_title": f"Project {index}", "contents_txt": record["contents_txt"][:200]}
            stream.write(json.dumps({"input": short}) + "\n")
    return path


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """Returns all results, without their times."""
    lines = [json.loads(line) for file in sorted(directory.glob("part-*.jsonl")) for line in file.open()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_results_are_those_of_the_built_in_engine(run, cluster, tiny_model, tmp_path) -> None:
    source, output = write_records(tmp_path / "in.jsonl", 7), tmp_path / "out"
    command = ["generate", "--base-model", tiny_model, *FLAGS, "--input", source]
    assert run(*command, "--output", tmp_path / "one.json").status == 0
    expected = json.loads((tmp_path / "one.json").read_text())
    command += ["--engine", "ray", "--output", output, "--shard-size", 2, "--actors", 2]
    result = run(*command)
    assert result.status == 0, result.err
    assert "4 of 4 shards, 7 records" in result.err and "7 records in 4 shards" in result.err
    lines = read_lines(output)
    assert [line["record"] for line in lines] == list(range(7))
    assert [line["generated_output"] for line in lines] == [result["generated_output"] for result in expected]
    assert [line["input"] for line in lines] == [result["input"] for result in expected]

    # resuming: only what is missing or damaged is generated
    stamps = {file.name: file.stat().st_mtime_ns for file in output.glob("part-*.jsonl")}
    (output / "part-00001.jsonl").unlink()
    damaged = output / "part-00003.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    again = run(*command)
    assert again.status == 0 and "2 of 4 shards already exist" in again.err
    assert read_lines(output) == lines
    unchanged = {name for name, stamp in stamps.items() if (output / name).stat().st_mtime_ns == stamp}
    assert unchanged == {"part-00000.jsonl", "part-00002.jsonl"}

    refused = run(*command, "--seed", 4)
    assert (
        refused.status == 1 and "different settings (generation.seed)" in refused.err and "--overwrite" in refused.err
    )
    write_records(source, 6)
    refused = run(*command)
    assert refused.status == 1 and "different settings (input)" in refused.err
    assert read_lines(output) == lines


def test_clean_documents_are_counted(run, cluster, tiny_model, tmp_path) -> None:
    model, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_model, model)
    contract = TextContract(3, "0.15.2", min_fidelity=0.9).to_json()
    (model / METADATA_FILE).write_text(json.dumps({"template": ReportPrompt().describe(), "contract": contract}))
    source = write_records(tmp_path / "in.jsonl", 3)
    command = ["generate", "--base-model", model, *FLAGS, "--input", source, "--engine", "ray", "--shard-size", 2]
    result = run(*command, "--output", output)
    assert result.status == 0 and "warning: 0 of 3 documents are clean." in result.err, result.err
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["clean"], manifest["not_clean"]) == (0, 3)
    assert [shard["not_clean"] for shard in manifest["shards"]] == [2, 1]
    assert all(line["clean"] is False for line in read_lines(output))


def test_invalid_records_have_their_errors_as_results(run, cluster, tiny_model, tmp_path) -> None:
    source, output = write_records(tmp_path / "in.jsonl", 3), tmp_path / "out"
    valid = source.read_text().splitlines()
    too_long = json.loads(valid[0])
    too_long["input"]["contents_txt"] = "word " * 60_000  # longer than the model's context: an error of decoding
    source.write_text("\n".join([valid[0], '{"starting_page": 1}', "{", json.dumps(too_long), valid[1]]) + "\n")
    command = ["generate", "--engine", "ray", "--base-model", tiny_model, *FLAGS]
    result = run(*command, "--input", source, "--output", output)
    assert result.status == 0 and "3 of 5 records have no document" in result.err
    lines = read_lines(output)
    assert ["error" in line for line in lines] == [False, True, True, True, False]
    assert "field 'department' is missing" in lines[1]["error"] and lines[1]["input"] == {"starting_page": 1}
    assert "is not valid JSON" in lines[2]["error"] and lines[2]["origin"] == f"{source}, line 3"
    assert "Shorten the record's text" in lines[3]["error"]


def test_model_that_cannot_be_loaded_stops_the_job(run, cluster, tmp_path, tiny_model) -> None:
    source = write_records(tmp_path / "in.jsonl", 2)
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    command = ["generate", "--engine", "ray", "--base-model", model, *FLAGS]
    result = run(*command, "--input", source, "--output", tmp_path / "out")
    assert (
        result.status == 1 and "could not be loaded from the directory" in result.err and "Traceback" not in result.err
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pdf"], "--pdf: --engine ray writes shards"),
        (["--output", "a.json"], "Name a directory"),
        (["--shard-size", "0"], "--shard-size: must be 1 or more"),
        (["--actors", "0"], "--actors: must be 1 or more"),
        (["--input", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_invalid_flags_are_reported(run, tmp_path, tiny_model, flags, message) -> None:
    source = write_records(tmp_path / "in.jsonl", 1)
    command = ["generate", "--engine", "ray", "--base-model", tiny_model, "--no-4bit", "--input", source]
    result = run(*command, "--output", tmp_path / "out", *flags)
    assert result.status == 1 and message in result.err and "Traceback" not in result.err


def test_missing_ray_is_reported_with_its_extra(run, tmp_path, tiny_model, monkeypatch) -> None:
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    source = write_records(tmp_path / "in.jsonl", 1)
    command = ["generate", "--engine", "ray", "--base-model", tiny_model, "--no-4bit"]
    result = run(*command, "--input", source, "--output", tmp_path / "out")
    assert result.status == 1 and "pip install 'typst-lit[ray]'" in result.err


@pytest.mark.slow
def test_killed_node_loses_and_repeats_nothing(run, tiny_model, tmp_path) -> None:
    """Two nodes generate 24 shards; the raylet and the actor of one get SIGKILL when 6 shards exist."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    source, output = write_records(tmp_path / "in.jsonl", 96), tmp_path / "out"
    command = ["generate", "--base-model", tiny_model, *FLAGS, "--input", source]
    assert run(*command, "--output", tmp_path / "one.json").status == 0
    expected = [result["generated_output"] for result in json.loads((tmp_path / "one.json").read_text())]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    killed: dict[str, Any] = {}
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

        def kill() -> None:
            while len(shards := list(output.glob("part-*.jsonl"))) < 6:
                time.sleep(0.05)
            workers = _worker_pids()
            killed.update(shards=len(shards), workers=len(workers))
            os.kill(workers[nodes[0].node_id], signal.SIGKILL)
            cluster.remove_node(nodes[0], allow_graceful=False)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        command += ["--engine", "ray", "--ray-address", cluster.address, "--shard-size", 4]
        result = run(*command, "--output", output)
        killer.join(30)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert result.status == 0, result.err
    assert killed["workers"] == 2 and 6 <= killed["shards"] < 24  # both nodes were working, and shards were missing
    assert "Retrying" in result.err
    lines = read_lines(output)
    assert [line["record"] for line in lines] == list(range(96))
    assert [line["generated_output"] for line in lines] == expected
    assert json.loads((output / "manifest.json").read_text())["complete"]


@pytest.mark.slow
def test_killed_job_is_resumed(run, tiny_model, tmp_path) -> None:
    """The job, its actors and its Ray processes get SIGKILL when 3 shards exist."""
    ray.shutdown()
    source, output = write_records(tmp_path / "in.jsonl", 24), tmp_path / "out"
    command = ["generate", "--engine", "ray", "--base-model", tiny_model, *FLAGS]
    command += ["--input", source, "--output", output, "--shard-size", 2]
    program = [sys.executable, "-m", "typst_lit", *map(str, command)]
    job = subprocess.Popen(program, start_new_session=True, stderr=subprocess.DEVNULL)
    while len(list(output.glob("part-*.jsonl"))) < 3:
        assert job.poll() is None
        time.sleep(0.05)
    root = psutil.Process(job.pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    num_shards = len(list(output.glob("part-*.jsonl")))
    assert 3 <= num_shards < 12 and not json.loads((output / "manifest.json").read_text())["complete"]
    result = run(*command)
    assert result.status == 0, result.err
    assert [line["record"] for line in read_lines(output)] == list(range(24))
    assert not any("error" in line for line in read_lines(output))
    assert json.loads((output / "manifest.json").read_text())["complete"]


def _worker_pids() -> dict[str, int]:
    """Returns the process id of each `ShardWorker`, by its node."""
    from ray._private.state import actors

    alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    workers = [actor for actor in alive if "ShardWorker" in actor["ActorClassName"]]
    return {worker["Address"]["NodeID"]: worker["Pid"] for worker in workers}
