"""What this program wrote, and may therefore replace and delete: one manifest per directory lists it.

The manifest is a hidden file in the directory that output files are written to. A name is added before its file
is first written, so that the file of a killed process is known to the next one. A file that is not listed belongs to
the user: it is never deleted, and replaced only with ``overwrite``. Hidden names that begin with ``.typst-lit-`` belong
to this program.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from typst_lit.errors import UserError, listing, plural
from typst_lit.files import (
    Content,
    atomic_write,
    fsync_directory,
    is_stream,
    remove_stale,
    scratch_directory,
    write_stream,
)
from typst_lit.locking import RESERVED_PREFIX

MANIFEST_NAME = f"{RESERVED_PREFIX}manifest.jsonl"
_MAX_LISTED = 5
_manifests: dict[Path, Manifest] = {}


class Manifest:
    """The list of the files that this program wrote to a directory, and what kind of directory it is.

    It is a file of JSON lines that is only appended to, ``{"file": NAME}`` or ``{"kind": KIND}``. Lines that are
    damaged are ignored, and names are those of files in the same directory, so that no manifest can name others.

    Args:
        directory: the directory; it need not exist.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as directory:
        ...     manifest = Manifest(Path(directory))
        ...     manifest.add(["report.json"])
        ...     manifest.lists("report.json"), manifest.lists("notes.txt")
        (True, False)
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / MANIFEST_NAME
        self._kind: str | None = None
        self._names: set[str] = set()
        self._state: tuple[int, ...] | None = None  # of the file, as it was read
        self._is_cut_off = False  # whether its last line has no end, because a process was killed

    @classmethod
    def of(cls, directory: Path) -> Manifest:
        """Returns the manifest of a directory; each process reads it once, and again after others have changed it."""
        directory = directory.resolve()
        if directory not in _manifests:
            remove_stale(directory)
            _manifests[directory] = cls(directory)
        return _manifests[directory]

    @property
    def kind(self) -> str | None:
        """The kind of a directory that belongs to a command: ``run``, ``shards``, ``export`` or ``adapter``."""
        self._read()
        return self._kind

    def lists(self, name: str) -> bool:
        """Returns whether a file of the directory is listed."""
        self._read()
        return name in self._names

    def add(self, names: Iterable[str] = (), kind: str | None = None) -> None:
        """Adds names of files, and the kind of the directory; the manifest is on the disk when this returns."""
        self._read()
        lines: list[dict[str, str]] = [{"file": name} for name in sorted({*names} - self._names)]
        if kind is not None and self._kind is None:
            lines.insert(0, {"kind": kind})
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        body = b"\n" * self._is_cut_off + b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        # One write in append mode: the lines of several processes do not mix.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            written = os.write(descriptor, body)
            os.fsync(descriptor)
            state = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if written != len(body) or state.st_size != (self._state[1] if self._state else 0) + len(body):
            self._state = None  # another process appended as well, or the disk is full
            self._read()
            return
        self._take(lines)
        self._state, self._is_cut_off = _state(state), False

    def _read(self) -> None:
        try:
            state = _state(os.lstat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            state = None
        if state == self._state and state is not None:
            return
        self._kind, self._is_cut_off = None, False
        self._names.clear()
        self._state = state
        if state is None:
            return
        with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
            content = stream.read()
        self._is_cut_off = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                self._take([json.loads(line)])

    def _take(self, lines: Iterable[Any]) -> None:
        for line in lines:
            if isinstance(line, dict) and isinstance(line.get("file"), str):
                self._names.add(line["file"])
            if isinstance(line, dict) and isinstance(line.get("kind"), str) and self._kind is None:
                self._kind = line["kind"]


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def is_listed(path: Path) -> bool:
    """Returns whether this program wrote a file, as the manifest of its directory lists it."""
    return Manifest.of(path.parent).lists(path.name)


def check_output(path: str | Path, overwrite: bool = False, *, hint: str | None = None) -> None:
    """Checks that a file may be written: it does not exist, or a manifest lists it, or it is to be overwritten.

    Called before work begins, and again by `write_output`.

    Args:
        path: the file, standard output (``-``), a pipe or a device.
        overwrite: whether to replace a file of the user.
        hint: what the user can do; by default, `overwrite`.

    Raises:
        UserError: when the file belongs to the user, or is a directory.
    """
    path = Path(path)
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a directory, not a file.")
    if overwrite or is_stream(path) or is_listed(path):
        return
    hint = hint or "Use another `output`, or `overwrite=true` to replace it."
    raise UserError(f"{path}: already exists, and was not written by this program.", hint=hint)


def write_output(path: str | Path, content: Content, overwrite: bool = False, *, hint: str | None = None) -> None:
    """Writes a file atomically, and lists it in the manifest of its directory; see `check_output`.

    Args:
        path: the file, standard output (``-``), a pipe or a device.
        content: bytes, or a function that writes into a stream.
        overwrite: whether to replace a file of the user; a symbolic link is replaced, not followed.
        hint: what the user can do when it may not be written.

    Raises:
        UserError: when the file belongs to the user, or is a directory.
    """
    if is_stream(path):
        write_stream(path, content)
        return
    path = Path(path)
    check_output(path, overwrite, hint=hint)
    Manifest.of(path.parent).add([path.name])
    atomic_write(path, content)


def move_output(source: Path, path: Path, hint: str) -> None:
    """Moves a finished file of a scratch directory to its path, as `write_output` writes it."""
    check_output(path, hint=hint)
    Manifest.of(path.parent).add([path.name])
    with source.open("rb") as stream:
        os.fsync(stream.fileno())
    source.replace(path)


def remove_output(path: Path) -> None:
    """Deletes a file if a manifest lists it."""
    if is_listed(path):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            path.unlink()


def check_separate(output: str | Path, inputs: Iterable[str | Path], hint: str = "Use another `output`.") -> None:
    """Checks that an output is not an input, not in an input directory, and no input is in it. Links are resolved.

    Raises:
        UserError: when it is: the output would replace an input, or the next run would read it as one.
    """
    if is_stream(output):
        return
    target = Path(output).resolve()
    for path in inputs:
        source = Path(path).expanduser().resolve()
        if not source.exists():
            continue
        if target == source:
            problem = f"{output}: is the input, which the output would replace."
        elif source.is_dir() and target.is_relative_to(source):
            problem = f"{output}: is inside the input directory {path}, whose files the next run would read."
        elif source.is_relative_to(target):
            problem = f"{output}: contains the input {path}."
        else:
            continue
        raise UserError(problem, hint=hint)


def check_directory(
    path: Path,
    kind: str,
    former: Callable[[Path], Iterable[str] | None] | None = None,
    *,
    ignored: Sequence[str] = (),
    hint: str | None = None,
) -> list[str]:
    """Checks that a command may own a directory: it is new or empty, or its manifest says that it is of this kind.

    Hidden files and logs that this process writes do not count: none is replaced.

    Args:
        path: the directory.
        kind: what it is used for.
        former: returns the names of the files that an earlier version of this program, which had no manifests, wrote
            to the directory; None when it is not such a directory.
        ignored: patterns of the names of other files that do not count.
        hint: what the user can do when it may not be used.

    Returns:
        The names to adopt.

    Raises:
        UserError: when it contains files of the user, or is of another kind.
    """
    hint = hint or "Use another `output`."
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, not a directory.", hint=hint)
    manifest = Manifest.of(path)
    if manifest.kind == kind or not path.is_dir():
        return []
    if manifest.kind is not None:
        raise UserError(f"{path}: is the directory of another command ({manifest.kind}).", hint=hint)
    names = former(path) if former else None
    if names is not None:
        return [*names]
    foreign = [
        entry.name for entry in path.iterdir()
        if not manifest.lists(entry.name) and not any(map(entry.match, (".*", *ignored))) and not _is_own_log(entry)
    ]  # fmt: skip
    if foreign:
        raise UserError(
            f"{path}: contains {plural(len(foreign), 'file')} that this program did not write:\n"
            f"{listing(sorted(foreign), _MAX_LISTED)}",
            hint=hint,
        )
    return []


def claim_directory(
    path: Path,
    kind: str,
    former: Callable[[Path], Iterable[str] | None] | None = None,
    *,
    ignored: Sequence[str] = (),
    hint: str | None = None,
) -> None:
    """Makes a command the owner of a directory, which is created if necessary; see `check_directory`."""
    names = check_directory(path, kind, former, ignored=ignored, hint=hint)
    Manifest.of(path).add(names, kind)


def _is_own_log(path: Path) -> bool:
    """Returns whether this process' output is redirected to a file."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return True
    return False


def check_export(path: Path, overwrite: bool = False) -> None:
    """Checks that a directory may be written as a whole by `export_directory`.

    Raises:
        UserError: when it is not empty, unless ``overwrite`` replaces one that was written by `export_directory`.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file, not a directory.", hint="Use another `output`.")
    if not path.is_dir() or not (entries := [*path.iterdir()]):
        return
    manifest = Manifest.of(path)
    foreign = [
        entry.name for entry in entries
        if entry.name != MANIFEST_NAME and (entry.is_dir() or not manifest.lists(entry.name))
    ]  # fmt: skip
    if manifest.kind != "export":
        raise UserError(f"{path}: is not empty.", hint="Use another `output`.")
    if foreign:
        problem = f"{path}: contains files that this program did not write:\n{listing(sorted(foreign), _MAX_LISTED)}"
        raise UserError(problem, hint="Use another `output`.")
    if not overwrite:
        problem = f"{path}: is not empty; it contains an earlier export."
        raise UserError(problem, hint="Use another `output`, or `overwrite=true` to replace it.")


@contextlib.contextmanager
def export_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a scratch directory that becomes a directory when all of its files are written, or not at all.

    Args:
        path: the directory, which must be empty or not exist.
        overwrite: replace an earlier export.

    Raises:
        UserError: when the directory has other files; see `check_export`.
    """
    check_export(path, overwrite)
    with scratch_directory(path.parent) as scratch:
        yield scratch
        manifest = Manifest(scratch)
        manifest.add([file.name for file in scratch.iterdir()], "export")
        check_export(path, overwrite)
        with scratch_directory(path.parent) as former:
            if path.exists():
                path.rename(former / path.name)
            scratch.rename(path)
        fsync_directory(path.parent)
