"""Where raw records come from: files, folders, the hub, or a plugin's own `RecordSource`."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from typst_lit.data.records import type_name
from typst_lit.errors import UserError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
CHUNK_BYTES = 1 << 20
MAX_RECORD_CHARS = 64 << 20
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what Python makes of bytes that are not


@dataclass(frozen=True)
class Row:
    """One value as it was read: where it stood, and what it is, or why it could not be read."""

    origin: str
    value: Any = None
    error: str | None = None


class RecordSource(ABC):
    """A place that raw records come from. The constructor is its configuration."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yields every row in order; a row that can't be read carries its fault, and reading goes on if it can."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a text that changes whenever the rows do: it is the key of the cache."""


def open_source(path: str) -> RecordSource:
    """Returns the source that a path means: a file, a folder of files, or else the name of a data set on the hub.

    Raises:
        UserError: when nothing is there and the path does not look like a hub name either.
    """
    local = Path(path).expanduser()
    if local.exists():
        return FileSource(str(local))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and local.suffix not in SUFFIXES and not path.startswith("."):
        return HubSource(path)
    near = sorted(p.name for p in local.parent.glob("*") if p.suffix in SUFFIXES) if local.parent.is_dir() else []
    hint = f"The folder {local.parent} has: {', '.join(near[:10])}." if near else "Check the path."
    raise UserError(f"{path}: there is no such file or folder. {hint}")


class FileSource(RecordSource):
    """JSON (a list, one object, or an object a line) and Parquet files, one or a folder of them.

    Args:
        path: the file, or a folder that is searched through for such files.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def files(self) -> list[Path]:
        """Returns the files to read, in order.

        Raises:
            UserError: when there is none, or the file is of an unknown kind.
        """
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
            if not found:
                raise UserError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file.")
            return found
        if not path.is_file():
            raise UserError(f"{path}: there is no such file or folder. Check the path.")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: a file of records ends in {', '.join(SUFFIXES)}. Rename or convert it.")
        return [path]

    def rows(self) -> Iterator[Row]:
        for file in self.files():
            try:
                yield from _parquet_rows(file) if file.suffix.lower() == ".parquet" else _json_rows(file)
            except OSError as error:
                raise UserError(f"{file}: can't be read: {error.strerror or error}.") from error

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self.files():
            try:
                with file.open("rb") as stream:
                    digest.update(str(file).encode("utf-8", "surrogateescape"))
                    while chunk := stream.read(CHUNK_BYTES):
                        digest.update(chunk)
            except OSError as error:
                raise UserError(f"{file}: can't be read: {error.strerror or error}.") from error
        return digest.hexdigest()


class HubSource(RecordSource):
    """A data set on the Hugging Face hub, whose rows have ``input`` and ``output`` or the bare fields as columns.

    Args:
        name: ``owner/name``.
        split: which split to read.
        revision: branch, tag or commit.
    """

    def __init__(self, name: str, split: str = "train", revision: str | None = None) -> None:
        self.name = name
        self.split = split
        self.revision = revision

    def _load(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.name, split=self.split, revision=self.revision)
        except Exception as error:  # the hub client raises many kinds: offline, no such set, no such split, no access
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self.name}: there is no such file or folder here, and as a hub data set it could not be loaded: "
                f"{reason} Check the spelling, the network and `hf auth login`."
            ) from error

    def rows(self) -> Iterator[Row]:
        for index, value in enumerate(self._load()):
            yield Row(f"{self.name} ({self.split}), record {index}", value)

    def fingerprint(self) -> str:
        return str(self._load()._fingerprint)


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        index = 0
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1000):
            for value in batch.to_pylist():
                yield Row(f"{file}, record {index}", value)
                index += 1
    except pyarrow.ArrowException as error:
        yield Row(str(file), error=f"is not a readable Parquet file: {str(error).splitlines()[0]}")


def _json_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        start = stream.read(CHUNK_BYTES)
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            yield Row(str(file), error="is UTF-16 text: save it as UTF-8")
            return
        first = start.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        stream.seek(0)
        lines = file.suffix.lower() in (".jsonl", ".ndjson")
        if not first:
            yield Row(str(file), error="is empty: it must hold at least one record")
        elif first == b"[" and not (lines and _is_line(stream)):
            stream.seek(0)
            yield from _list_rows(file, stream)
        elif not lines and not _is_object(stream.readline()):
            yield _one_value(file)
        else:
            stream.seek(0)
            yield from _line_rows(file, stream)


def _is_line(stream: BinaryIO) -> bool:
    """Tells whether a file that begins with a list has values a line: another follows, or it is no list of records."""
    try:
        value = json.loads(stream.readline().removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return False
    return bool(stream.readline().strip()) or not all(isinstance(each, dict) for each in value) or not value


def _is_object(line: bytes) -> bool:
    """Tells whether a line holds a whole JSON object: then the file has one record, or one a line."""
    try:
        return isinstance(json.loads(line.removeprefix(codecs.BOM_UTF8)), dict)
    except (ValueError, RecursionError):
        return False


def _one_value(file: Path) -> Row:
    try:
        value = json.loads(file.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return Row(str(file), error=_not_utf8(error.object[error.start], f" (line {line})"))
    except json.JSONDecodeError as error:
        return Row(str(file), error=f"is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Row(str(file), error=f"is not valid JSON: {error}")
    if isinstance(value, dict):
        return Row(f"{file}, record 0", value)
    return Row(
        str(file),
        error=f"has {type_name(value)} at the top level: it must be a list of records, one record, or one a line",
    )


def _line_rows(file: Path, stream: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        origin = f"{file}, line {number}"
        try:
            yield Row(origin, json.loads(line.decode("utf-8")))
        except UnicodeDecodeError as error:
            yield Row(origin, error=_not_utf8(error.object[error.start]))
        except json.JSONDecodeError as error:
            yield Row(origin, error=f"is not valid JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            yield Row(origin, error=f"is not valid JSON: {error}")


def _list_rows(file: Path, stream: BinaryIO) -> Iterator[Row]:
    """Yields the elements of a JSON list one by one, holding no more of the file than the element being read."""
    # What is not UTF-8 comes as escapes of its bytes, so that the elements around it can be read.
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    parse = json.JSONDecoder().raw_decode
    text, at, line, ended = "", 0, 1, False

    def more() -> None:
        nonlocal text, at, ended, line
        line += text.count("\n", 0, at)
        chunk = stream.read(max(CHUNK_BYTES, len(text) - at))  # doubles while one element outgrows what is held
        ended = not chunk
        text, at = text[at:] + decode(chunk, final=ended), 0

    def skip_space() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text) or ended:
                return text[at : at + 1]
            more()

    def here() -> str:
        return f"line {line + text.count(chr(10), 0, at)}"

    index = 0
    try:
        skip_space()
        at += 1  # the opening bracket
        while (mark := skip_space()) != "]":
            if index:
                if mark != ",":
                    raise ValueError(f"expected ',' or ']' after record {index - 1}")
                at += 1
                skip_space()
            while True:
                try:
                    value, end = parse(text, at)
                    if end < len(text) or ended:
                        break
                except ValueError:
                    if ended or len(text) - at > MAX_RECORD_CHARS:
                        raise
                more()
            origin = f"{file}, record {index} ({here()})"
            strange = NOT_UTF8.search(text, at, end)
            at = end
            yield Row(origin, error=_not_utf8(ord(strange[0]) & 0xFF)) if strange else Row(origin, value)
            index += 1
        at += 1
        if skip_space():
            raise ValueError("there is more text after the end of the list")
        if not index:
            yield Row(str(file), error="holds an empty list: it must hold at least one record")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        rest = f"; nothing after record {index - 1} could be read" if index else ""
        yield Row(f"{file}, {here()}", error=f"is not valid JSON: {reason}{rest}")


def _not_utf8(byte: int, where: str = "") -> str:
    return f"is not UTF-8 text{where}: byte 0x{byte:02x} can't be there; save it as UTF-8"
