"""Which files may be replaced and deleted: those that a manifest lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from typst_lit.errors import UserError
from typst_lit.files import TEMPORARY_PREFIX, atomic_write, scratch_directory
from typst_lit.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_separate,
    claim_directory,
    export_directory,
    remove_output,
    write_output,
)

WRITER = """
import sys
from pathlib import Path
from typst_lit.manifest import write_output
write_output(Path(sys.argv[1]), lambda stream: (stream.write(b"half"), stream.flush(), print(flush=True), input()))
"""


def test_a_file_of_the_user_is_replaced_only_on_request(tmp_path) -> None:
    path = tmp_path / "report.json"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"report\.json: already exists.*`overwrite=true`"):
        write_output(path, b"ours")
    remove_output(path)
    assert path.read_text() == "mine"
    write_output(path, b"ours", overwrite=True)
    write_output(path, b"ours again")
    assert path.read_bytes() == b"ours again"
    remove_output(path)
    assert not path.exists()
    with pytest.raises(UserError, match="is a directory"):
        write_output(tmp_path, b"", overwrite=True)


def test_a_link_is_replaced_and_its_target_is_left_alone(tmp_path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    for name, link_target in (("link", target), ("dangling", tmp_path / "nothing")):
        link = tmp_path / name
        link.symlink_to(link_target)
        with pytest.raises(UserError, match="already exists"):
            write_output(link, b"ours")
        write_output(link, b"ours", overwrite=True)
        assert not link.is_symlink() and link.read_bytes() == b"ours" and target.read_text() == "mine"


def test_hostile_and_damaged_manifests_name_no_other_files(tmp_path) -> None:
    outside, inside = tmp_path / "secret", tmp_path / "directory"
    inside.mkdir()
    outside.write_text("mine")
    (inside / "file").write_text("mine")
    lines = ['{"file": "../secret"}', "{", "[" * 100_000, '{"file": 3}', "[1]", '{"kind": {}}', '{"file": "listed"']
    (inside / MANIFEST_NAME).write_bytes(b"\xff\n" + "\n".join(lines).encode())
    for path in (outside, inside / ".." / "secret", inside / "file"):
        remove_output(path)
        with pytest.raises(UserError, match="already exists"):
            write_output(path, b"ours")
        assert path.read_text() == "mine"
    assert Manifest.of(inside).kind is None
    write_output(inside / "new", b"ours")  # after a line that was cut off
    assert Manifest(inside).lists("new")
    (inside / MANIFEST_NAME).unlink()
    (inside / MANIFEST_NAME).symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        write_output(inside / "more", b"ours")
    assert outside.read_text() == "mine"


def test_other_processes_may_add_to_a_manifest(tmp_path) -> None:
    threads = []
    for number in range(4):
        code = (
            "import sys; from pathlib import Path; from typst_lit.manifest import write_output\n"
            f"for n in range(50): write_output(Path(sys.argv[1]) / f'{number}-{{n}}', b'x')"
        )
        threads.append(threading.Thread(target=subprocess.run, args=([sys.executable, "-c", code, str(tmp_path)],)))
    for thread in threads:
        thread.start()
    write_output(tmp_path / "own", b"x")
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (tmp_path / MANIFEST_NAME).read_text().splitlines()]
    assert len(lines) == 201
    assert all(Manifest.of(tmp_path).lists(line["file"]) for line in lines)
    remove_output(tmp_path / "3-49")
    assert not (tmp_path / "3-49").exists()


def test_a_killed_writer_leaves_the_old_content_and_its_temporary_file_is_removed_later(tmp_path) -> None:
    path = tmp_path / "file"
    write_output(path, b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    code = "import sys; from pathlib import Path; from typst_lit.files import remove_stale; "
    code += "remove_stale(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len([*tmp_path.glob(f"{TEMPORARY_PREFIX}*")]) == 1  # it is being written
    process.kill()
    process.communicate()
    assert path.read_bytes() == b"old"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not [*tmp_path.glob(f"{TEMPORARY_PREFIX}*")]


def test_stale_links_and_directories_are_removed_but_not_followed(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / f"{TEMPORARY_PREFIX}link").symlink_to(precious)
    (parent / f"{TEMPORARY_PREFIX}directory").mkdir()
    (parent / f"{TEMPORARY_PREFIX}directory" / "link").symlink_to(precious)
    with scratch_directory(parent) as scratch:
        assert [*parent.iterdir()] == [scratch]
        with scratch_directory(parent):
            assert len([*parent.iterdir()]) == 2  # that of the outer block is in use
    assert not [*parent.iterdir()] and (precious / "file").read_text() == "mine"


def test_standard_output_pipes_and_devices_are_written_to_directly(tmp_path, capfd) -> None:
    write_output("-", b"one\n")
    write_output("/dev/stdout", b"two\n")
    write_output("/dev/null", b"three\n")
    assert capfd.readouterr().out == "one\ntwo\n"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    received: list[bytes] = []
    reader.start()
    write_output(pipe, b"four")
    reader.join()
    assert received == [b"four"] and [*tmp_path.iterdir()] == [pipe]
    code = "from typst_lit.manifest import write_output; write_output('/dev/stdout', b'new')"
    appended = tmp_path / "appended"
    appended.write_text("old, ")
    with appended.open("ab") as stream:
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
    assert appended.read_text() == "old, new"


def test_a_directory_is_owned_if_it_is_new_empty_or_already_of_the_kind(tmp_path) -> None:
    claim_directory(tmp_path / "new", "run")
    claim_directory(tmp_path / "new", "run")
    (tmp_path / "new" / "of the user").touch()
    claim_directory(tmp_path / "new", "run")
    with pytest.raises(UserError, match=r"another command \(run\)"):
        claim_directory(tmp_path / "new", "shards")
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.docx").touch()
    with pytest.raises(UserError, match=r"contains 1 file that this program did not write:\n  thesis.docx"):
        claim_directory(used, "run")
    assert [path.name for path in used.iterdir()] == ["thesis.docx"]
    (used / "thesis.docx").unlink()
    (used / ".gitkeep").touch()
    (used / "log.txt").touch()
    claim_directory(used, "run", ignored=["*.txt"])
    with pytest.raises(UserError, match="is a file"):
        claim_directory(used / "log.txt", "run")


def test_an_export_appears_when_it_is_complete_and_replaces_only_an_export(tmp_path) -> None:
    path = tmp_path / "export"
    with pytest.raises(RuntimeError), export_directory(path) as scratch:
        (scratch / "half").touch()
        raise RuntimeError
    assert not [*tmp_path.iterdir()]
    with export_directory(path) as scratch:
        (scratch / "first").touch()
    with pytest.raises(UserError, match=r"earlier export.*`overwrite=true`"), export_directory(path):
        pass
    (path / "mine").write_text("mine")
    with pytest.raises(UserError, match="did not write:\n  mine"), export_directory(path, overwrite=True):
        pass
    (path / "mine").unlink()
    with export_directory(path, overwrite=True) as scratch:
        (scratch / "second").touch()
    assert {file.name for file in path.iterdir()} == {"second", MANIFEST_NAME}
    other = tmp_path / "other"
    atomic_write(other / "mine", b"mine")
    with pytest.raises(UserError, match="is not empty"), export_directory(other, overwrite=True):
        pass
    assert {file.name for file in tmp_path.iterdir()} == {"export", "other"}


def test_an_output_and_an_input_are_separate(tmp_path) -> None:
    data = tmp_path / "data"
    atomic_write(data / "records" / "a.json", b"[]")
    (tmp_path / "link").symlink_to(data)
    check_separate(tmp_path / "out", [data])
    check_separate(tmp_path / "data2", [data])
    for output, source, message in (
        (data / "records" / "a.json", tmp_path / "link" / "records" / "a.json", "is the input"),
        (tmp_path / "link" / "out.json", data, "is inside the input directory"),
        (data, data / "records", "contains the input"),
        (tmp_path / "link", data / "records", "contains the input"),
    ):
        with pytest.raises(UserError, match=message):
            check_separate(output, [source])
    assert Path("-").name == "-" and check_separate("-", [data]) is None
