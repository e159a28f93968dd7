"""Commands that are killed again and again, and resumed: nothing is lost, nothing is there twice, no file of the user
changes. `fit` is in test_kills.py.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import SAMPLES
from typst_lit.files import TEMPORARY_PREFIX, atomic_write
from typst_lit.locking import LOCK_NAME

KILLS = 20
NUM_RECORDS = 400
pytestmark = pytest.mark.slow


def kill_at_random(
    args: Sequence[object], is_working: Callable[[], bool], seconds: float, generator: random.Random, kill_tree: bool
) -> bool:
    """Starts a command and kills it: one time in four while it starts, else while it works.

    Args:
        args: of the command line.
        is_working: whether the command works.
        seconds: how long it works at most until it is killed.
        generator: of the moments.
        kill_tree: kill its children as well.

    Returns:
        Whether it was killed before its end.
    """
    command = [sys.executable, "-m", "typst_lit", *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    start = time.monotonic()
    starting = generator.uniform(0, 4) if generator.random() < 0.25 else None
    while process.poll() is None and not is_working():
        if starting is not None and time.monotonic() - start > starting:
            break
        time.sleep(0.005)
    if starting is None:
        time.sleep(generator.uniform(0, seconds))
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    for child in children if kill_tree else []:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    assert process.stderr is not None
    stderr = process.stderr.read().decode() if not children or kill_tree else ""
    process.stderr.close()
    process.wait()
    assert not any(line.startswith(("Traceback", "error:")) for line in stderr.splitlines()), stderr
    return was_running


def write_records(path: Path, count: int) -> Path:
    """Writes different short records."""
    samples = json.loads(SAMPLES.read_text("utf-8"))
    records = [
        {**samples[index % 12]["input"], "project_title": f"Project {index}", "contents_txt": f"Text {index}."}
        for index in range(count)
    ]
    path.write_text(json.dumps(records))
    return path


def write_user_files(directory: Path) -> dict[Path, bytes]:
    """Writes files of the user into the directories that commands write to, and returns their contents."""
    names = ["notes.md", "thesis.pdf", ".hidden", "part-1.jsonl", "0001.typ", "records/mine.json", "results.json.bak"]
    files = {directory / name: name.encode() * 100 for name in names}
    for path, content in files.items():
        atomic_write(path, content)
    return files


def assert_unchanged(files: dict[Path, bytes]) -> None:
    assert {path: path.read_bytes() for path in files} == files


@pytest.fixture
def generate_args(tiny_model, tmp_path) -> list[object]:
    return [
        "generate", "--base-model", tiny_model, "--no-4bit", "--max-tokens", 60, "--seed", 3, "--temperature", 1.0,
        "--input", write_records(tmp_path / "records.json", NUM_RECORDS),
    ]  # fmt: skip


def test_generate(run, generate_args, tmp_path) -> None:
    directory = tmp_path / "out"
    output = directory / "results.json"
    user_files = write_user_files(directory)
    args = [*generate_args, "--output", output, "--pdf", "--batch-size", 1]
    generator, lock = random.Random(0), directory / f"{LOCK_NAME}-results.json"
    earlier: dict[str, Any] = {}
    num_killed, counts = 0, []
    for number in range(KILLS):
        before = size(output)
        has_grown = lambda before=before: size(output) > before  # noqa: E731
        num_killed += kill_at_random(args, has_grown, 1.5, generator, kill_tree=bool(number % 2))
        results = json.loads(output.read_text("utf-8")) if output.exists() else []
        by_title = {result["input"]["project_title"]: result for result in results}
        assert len(by_title) == len(results) and earlier.items() <= by_title.items()
        for result in results:
            assert (directory / document_name(result)).read_bytes().decode() == result["generated_output"]
        earlier = by_title
        counts.append(len(results))
        assert_unchanged(user_files)
    last = run(*args)
    assert last.status == 0, last.err
    results = json.loads(output.read_text("utf-8"))
    assert [result["input"]["project_title"] for result in results] == [f"Project {n}" for n in range(NUM_RECORDS)]
    assert earlier.items() <= {result["input"]["project_title"]: result for result in results}.items()
    assert_unchanged(user_files)
    for result in results:
        path = directory / document_name(result)
        assert path.read_bytes().decode() == result["generated_output"]
        assert path.with_suffix(".pdf").exists() == result["compiled"]
    assert len([*directory.glob("0*-*.typ")]) == NUM_RECORDS
    assert not [*directory.glob(f"{TEMPORARY_PREFIX}*")] and not lock.exists()
    expected = tmp_path / "uninterrupted" / "results.json"
    assert run(*generate_args, "--output", expected).status == 0
    assert [result["generated_output"] for result in json.loads(expected.read_text("utf-8"))] == [
        result["generated_output"] for result in results
    ]
    print(f"{num_killed} of {KILLS} kills before the end; results after each: {counts}")
    assert num_killed > KILLS // 2 and sum(0 < count < NUM_RECORDS for count in counts) > 0


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def document_name(result: dict[str, Any]) -> str:
    from typst_lit.inference.outputs import file_name

    return file_name(int(result["input"]["project_title"].split()[1]), result["input"])


def test_generate_on_ray(run, generate_args, tmp_path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'typst-lit[ray]'")
    parent, output = tmp_path / "out", tmp_path / "out" / "shards"
    parent.mkdir()
    user_files = write_user_files(parent)
    args = [*generate_args, "--output", output, "--engine", "ray", "--shard-size", 4]
    generator = random.Random(0)
    num_killed, counts, listed = 0, [], {}
    for number in range(KILLS):
        is_working = working_on_shards(output)
        num_killed += kill_at_random(args, is_working, 1.0, generator, kill_tree=bool(number % 2))
        if number == 0:  # files of the user in the directory of shards
            user_files |= write_user_files(output)
        manifest = output / "manifest.json"
        if manifest.exists():
            shards = {shard["name"]: shard["sha256"] for shard in json.loads(manifest.read_text())["shards"]}
            assert listed.items() <= shards.items()
            listed = shards
        counts.append(len(listed))
        assert_unchanged(user_files)
    last = run(*args)
    assert last.status == 0, last.err
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["complete"] and manifest["records"] == NUM_RECORDS
    files = sorted(output.glob("part-?????.jsonl"))
    assert [shard["sha256"] for shard in manifest["shards"]] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    ]
    lines = [json.loads(line) for file in files for line in file.open()]
    assert [line["record"] for line in lines] == list(range(NUM_RECORDS)) and not any("error" in line for line in lines)
    expected = tmp_path / "uninterrupted" / "results.json"
    assert run(*generate_args, "--output", expected).status == 0
    assert [result["generated_output"] for result in json.loads(expected.read_text("utf-8"))] == [
        line["generated_output"] for line in lines
    ]
    assert_unchanged(user_files)
    assert not [*output.glob(f"{TEMPORARY_PREFIX}*")] and not (output / ".typst-lit-records").exists()
    print(f"{num_killed} of {KILLS} kills before the end; shards listed after each: {counts}")
    assert num_killed > KILLS // 2


def working_on_shards(output: Path) -> Callable[[], bool]:
    """Returns what says whether there are more shards than now."""
    before = len([*output.glob("part-?????.jsonl")])
    return lambda: len([*output.glob("part-?????.jsonl")]) > before


def test_compile(run, tmp_path) -> None:
    directory = tmp_path / "documents"
    user_files = write_user_files(directory)
    for number in range(150):
        atomic_write(directory / f"d{number}.typ", f"= Document {number}\n#lorem(600)".encode())
        atomic_write(directory / f"d{number}.pdf", b"%PDF old")
    for number in range(10):
        source = directory / f"broken{number}.typ"
        user_files |= {source: b"#broken", source.with_suffix(".pdf"): b"%PDF of the user"}
        atomic_write(source, b"#broken")
        atomic_write(source.with_suffix(".pdf"), b"%PDF of the user")
    args = ["compile", directory, "--ppi", 10]
    generator = random.Random(0)
    num_killed, counts, first = 0, [], directory / "d0.pdf"
    for number in range(KILLS):
        changed = first.stat().st_mtime_ns
        num_killed += kill_at_random(
            args, lambda changed=changed: first.stat().st_mtime_ns != changed, 1.0, generator, bool(number % 2)
        )
        contents = [path.read_bytes() for path in directory.glob("d*.pdf")]
        assert all(content == b"%PDF old" or content.rstrip().endswith(b"%%EOF") for content in contents)
        counts.append(sum(content != b"%PDF old" for content in contents))
        assert all(path.read_bytes().endswith(b"IEND\xaeB`\x82") for path in directory.glob("*.png"))
        assert_unchanged(user_files)
    last = run(*args)
    assert last.status == 1 and "151 of 161 documents compiled" in last.out, last.err
    assert all(path.read_bytes().rstrip().endswith(b"%%EOF") for path in directory.glob("d*.pdf"))
    assert_unchanged(user_files)
    assert not [*directory.glob(f"{TEMPORARY_PREFIX}*")]
    print(f"{num_killed} of {KILLS} kills before the end; new PDFs after each: {counts}")
    assert num_killed > KILLS // 2 and (directory / "d0-1.png").exists()
