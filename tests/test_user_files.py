"""Commands replace and delete only what this program wrote, and resume what earlier versions wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SAMPLES
from typst_lit.files import atomic_write
from typst_lit.manifest import MANIFEST_NAME


def contents(directory: Path) -> dict[str, bytes]:
    """Returns the content of every file below a directory, that of links instead of their targets."""
    return {
        str(path.relative_to(directory)): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def remove_manifests(directory: Path) -> None:
    """Makes a directory one of an earlier version, which wrote no manifests."""
    for path in directory.rglob(MANIFEST_NAME):
        path.unlink()


@pytest.fixture
def records(tmp_path, pairs) -> Path:
    path = tmp_path / "data" / "records" / "mine.json"
    atomic_write(path, json.dumps([pair["input"] for pair in pairs[:3]]).encode())
    return path


@pytest.fixture
def generate(run, tiny_model) -> Callable[..., Any]:
    """Runs ``generate`` with a tiny model."""
    return lambda *args: run(
        "generate", "--base-model", tiny_model, "--no-4bit", "--max-tokens", 4, "--temperature", 0, *args
    )


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("data/records", "data", "data: contains the input"),
        ("data", "data/out", "is inside the input directory"),
        ("data", "data", "is the input"),
        ("data/records", "used", "contains 1 file that this program did not write:\n  thesis.typ"),
        ("data/records", "used/thesis.typ", "Name a directory"),
    ],
)
def test_shards_get_a_directory_of_their_own(generate, records, tmp_path, source, output, message) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.typ").write_text("mine")
    before = contents(tmp_path)
    result = generate("--engine", "ray", "--input", tmp_path / source, "--output", tmp_path / output)
    assert result.status == 1 and message in result.err and "Traceback" not in result.err, result.err
    assert contents(tmp_path) == before


def test_results_replace_no_file_of_the_user(generate, records, tmp_path) -> None:
    (tmp_path / "other.json").write_text('{"mine": true}')
    (tmp_path / "other.run.json").write_text('{"mine": true}')
    before = contents(tmp_path)
    for output, message in (
        (records, "is the input, which the output would replace"),
        (tmp_path / "other.json", "already exists, and was not written by this program"),
        (records.parent, "must be a .json file"),
    ):
        result = generate("--input", records, "--output", output)
        assert result.status == 1 and message in result.err and "Traceback" not in result.err, result.err
    inside = generate("--input", records.parent, "--output", records.parent / "results.json")
    assert inside.status == 1 and "whose files the next run would read" in inside.err
    assert contents(tmp_path) == before
    done = generate("--input", records, "--output", tmp_path / "other.json", "--overwrite")
    assert done.status == 0, done.err
    assert len(json.loads((tmp_path / "other.json").read_text())) == 3


def test_documents_replace_no_file_of_the_user(generate, records, tmp_path, pairs) -> None:
    from typst_lit.inference.outputs import file_name

    output, directory = tmp_path / "out" / "results.json", tmp_path / "documents"
    mine = directory / file_name(1, pairs[1]["input"])
    atomic_write(mine, b"mine")
    flags = ["--input", records, "--output", output, "--typ-dir", directory, "--pdf"]
    refused = generate(*flags)
    assert refused.status == 1 and f"{mine}: already exists" in refused.err and "--typ-dir" in refused.err, refused.err
    assert mine.read_bytes() == b"mine" and len([*directory.iterdir()]) == 1 and not output.exists()
    assert generate(*flags, "--overwrite").status == 0
    documents = sorted(directory.glob("*.typ"))
    assert len(documents) == 3 and mine.read_bytes() != b"mine"
    # the PDF of an earlier version of a document is deleted, one of the user is not
    stale = documents[0].with_suffix(".pdf")
    is_compiled = stale.exists()
    stale.unlink(missing_ok=True)
    stale.write_bytes(b"of the user")
    again = generate(*flags, "--overwrite")
    assert again.status == 0 and (is_compiled or stale.read_bytes() == b"of the user")


def test_results_go_to_standard_output_and_pipes(generate, records, tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert generate("--input", records, "--output", pipe).status == 0
    received = json.loads(reader.communicate()[0])
    for output in ("-", "/dev/stdout"):
        printed = generate("--input", records, "--output", output)
        assert printed.status == 0, printed.err
        results = json.loads(printed.out)
        assert [result["generated_output"] for result in results] == [result["generated_output"] for result in received]
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "data"}


def test_a_fit_starts_in_a_directory_of_its_own(run, fit_args, tmp_path) -> None:
    used = tmp_path / "project"
    atomic_write(used / "checkpoints" / "00001-step-1.ckpt", b"of another program")
    atomic_write(used / "thesis.typ", b"mine")
    before = contents(used)
    refused = run(*fit_args, "--run_dir", used)
    assert refused.status == 1 and "contains 2 files that this program did not write" in refused.err
    assert "--run_dir" in refused.err and "Traceback" not in refused.err and contents(used) == before
    data = tmp_path / "data"
    atomic_write(data / "pairs.json", SAMPLES.read_bytes())
    inside = run(*fit_args, "--data.path", data, "--run_dir", data / "runs" / "a")
    assert inside.status == 1 and "is inside the input directory" in inside.err and "--run_dir" in inside.err
    assert {path.name for path in data.iterdir()} == {"pairs.json"}


def test_a_log_in_the_run_directory_is_no_obstacle(fit_args, tmp_path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with (directory / "messages").open("wb") as stream:
        command = [sys.executable, "-m", "typst_lit", *fit_args, "--trainer.max_steps", "1"]
        assert subprocess.run(command, stdout=stream, stderr=stream).returncode == 0, (
            directory / "messages"
        ).read_text()
    assert b"Saved in" in (directory / "messages").read_bytes()


def test_a_run_of_an_earlier_version_is_resumed(run, fit_args, tmp_path) -> None:
    directory = tmp_path / "run"
    assert run(*fit_args, "--trainer.max_epochs", 1).status == 0
    remove_manifests(directory)
    mine = {directory / "notes.md": b"mine", directory / "adapter" / "best" / "notes.md": b"mine"}
    for path, content in mine.items():
        path.write_bytes(content)
    resumed = run(*fit_args, "--ckpt_path", "last")
    assert resumed.status == 0 and "Resuming after step" in resumed.err, resumed.err
    assert all(path.read_bytes() == content for path, content in mine.items())
    tested = run("test", *fit_args[1:], "--model.adapter_path", directory, "--eval.test_records", 1)
    assert tested.status == 0, tested.err
    remove_manifests(directory)
    tested = run("test", *fit_args[1:], "--model.adapter_path", directory, "--eval.test_records", 1)
    assert tested.status == 0, tested.err


def test_results_and_shards_of_an_earlier_version_are_resumed(generate, records, tmp_path) -> None:
    output = tmp_path / "out" / "results.json"
    assert generate("--input", records, "--output", output).status == 0
    results = json.loads(output.read_text())
    remove_manifests(tmp_path)
    output.write_text(json.dumps(results[:2]))
    resumed = generate("--input", records, "--output", output)
    assert resumed.status == 0 and "2 of 3 documents already exist" in resumed.err, resumed.err
    assert json.loads(output.read_text())[:2] == results[:2]


def test_other_commands_replace_no_file_of_the_user(run, fit_args, tiny_model, able_adapter, tmp_path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    directory = tmp_path / "report"
    atomic_write(directory / "report.html", b"mine")
    config = fit_args[1:]
    results = tmp_path / "results.json"
    pair = json.loads(SAMPLES.read_text())[0]
    results.write_text(json.dumps([pair]))
    commands: list[list[object]] = [
        ["lengths", "--data.path", SAMPLES, "--model.base_model", tiny_model, "--output", mine],
        ["plan", *config, "--device", "t4", "--write", mine],
        ["score", results, "--output-dir", directory],
        ["test", *config, "--eval.report_dir", directory],
        ["export", "--model", able_adapter, "--to", "merged", "--no-check", "--output", directory],
        ["convert", "--base-model", tiny_model, "--output", directory],
    ]
    before = contents(tmp_path)
    for command in commands:
        refused = run(*command)
        assert refused.status == 1 and "Traceback" not in refused.err, (command[0], refused.err)
        is_directory = command[0] in ("export", "convert")
        assert ("is not empty" if is_directory else "already exists") in refused.err, (command[0], refused.err)
        assert is_directory or "overwrite" in refused.err.replace("`", ""), (command[0], refused.err)
    shutil.rmtree(tmp_path / "run")  # the run directory of `test`
    assert contents(tmp_path) == before
    assert run(*commands[0], "--overwrite").status == 0 and mine.read_bytes().startswith(b"\x89PNG")
    assert run(*commands[0]).status == 0


def test_copies_of_checkpoints_leave_those_of_another_run(run, fit_args, tmp_path) -> None:
    copies = tmp_path / "drive"
    copy_args = ["--checkpoint.copy_to", copies, "--checkpoint.keep", 1]
    assert run(*fit_args, *copy_args, "--trainer.max_epochs", 1).status == 0
    before = contents(copies)
    refused = run(*fit_args, *copy_args, "--run_dir", tmp_path / "other")
    assert refused.status == 1 and "contains checkpoints of another run" in refused.err, refused.err
    assert "--checkpoint.copy_to" in refused.err and contents(copies) == before
    # on a new machine, the run continues from its copies, and with them
    shutil.rmtree(tmp_path / "run")
    resumed = run(*fit_args, *copy_args, "--ckpt_path", copies)
    assert resumed.status == 0 and "Resuming after step" in resumed.err, resumed.err
    assert len([*copies.glob("*.ckpt")]) == 1 and contents(copies) != before
