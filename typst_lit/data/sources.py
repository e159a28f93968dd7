"""Sources of raw records: files, directories, the Hugging Face hub, or a plugin's own `RecordSource`."""

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
# The samples of the package, by the names that stand for their paths: pairs to train on, and pairs that are held out
SAMPLES = {"samples": "reports.json", "samples-held-out": "held_out.json"}
CHUNK_BYTES = 1 << 20
WHITE_SPACE = re.compile(r"[ \t\r\n]*")
MAX_RECORD_CHARS = 64 << 20
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # the surrogates that Python decodes other bytes to


@dataclass(frozen=True)
class Row:
    """One value as it was read.

    Attributes:
        origin: where it comes from: the file, and its line or index.
        value: what was read.
        error: why it could not be read; None if it could.

    >>> Row("reports.json, record 0 (line 1)", {"input": {"title": "Night buses"}, "output": "= Night buses"}).error
    """

    origin: str
    value: Any = None
    error: str | None = None


class RecordSource(ABC):
    """A source of raw records. The arguments of its constructor are its configuration.

    >>> class Titles(RecordSource):
    ...     def __init__(self, titles: list[str]) -> None:
    ...         self.titles = titles
    ...
    ...     def rows(self):
    ...         for index, title in enumerate(self.titles):
    ...             yield Row(f"title {index}", {"input": {"title": title}, "output": f"= {title}"})
    ...
    ...     def fingerprint(self):
    ...         return str(self.titles)
    >>> [row.value["output"] for row in Titles(["Night buses"]).rows()]
    ['= Night buses']
    """

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yields all rows in order. A row that can't be read has an error, and reading continues if possible."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns text that changes whenever the rows do: it is part of the cache's key."""


def is_hidden(name: str) -> bool:
    """Returns whether a file or directory is hidden, as those that this program writes for itself are."""
    return name.startswith(".")


def open_source(path: str) -> RecordSource:
    """Returns the source for a path: a file, a folder of files, or else the name of a data set on the hub.

    Raises:
        UserError: if the path does not exist and does not look like a name on the hub.

    >>> open_source("owner/reports").name
    'owner/reports'
    """
    local = Path(path).expanduser()
    if local.exists() or path in SAMPLES:
        return FileSource(str(local))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and local.suffix not in SUFFIXES and not path.startswith("."):
        return HubSource(path)
    names = sorted(p.name for p in local.parent.glob("*") if p.suffix in SUFFIXES) if local.parent.is_dir() else []
    hint = f"The folder {local.parent} contains: {', '.join(names[:10])}." if names else "Check the path."
    raise UserError(f"{path}: no such file or folder.", hint=hint)


class FileSource(RecordSource):
    """A JSON file (a list, one object, or one object per line), a Parquet file, or a folder of such files.

    Args:
        path: the file, or a folder whose files are read, those of its subfolders too; or the name of `SAMPLES`.

    >>> next(FileSource("samples").rows()).value.keys()
    dict_keys(['input', 'output'])
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = Path(directory) / "reports.jsonl"
    ...     size = path.write_text('{"title": "Night buses"}\\nnot JSON\\n{"title": "Day buses"}')
    ...     rows = list(FileSource(str(path)).rows())
    >>> [row.value for row in rows]
    [{'title': 'Night buses'}, None, {'title': 'Day buses'}]
    >>> rows[1].origin.removeprefix(directory), rows[1].error
    ('/reports.jsonl, line 2', 'is not valid JSON: Expecting value at column 1')
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def files(self) -> list[Path]:
        """Returns the files to read, in order.

        Raises:
            UserError: if there is none, or its suffix is unknown.
        """
        path = Path(self.path).expanduser()
        if self.path in SAMPLES and not path.exists():
            path = Path(__file__).with_name("samples") / SAMPLES[self.path]
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES and not any(map(is_hidden, file.relative_to(path).parts))
            )  # fmt: skip
            if not files:
                raise UserError(f"{path}: the folder contains no {', '.join(SUFFIXES)} files.")
            return files
        if not path.is_file():
            raise UserError(f"{path}: no such file or folder.", hint="Check the path.")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{path}: the name of a file of records ends in {', '.join(SUFFIXES)}.", hint="Rename or convert it."
            )
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

    >>> HubSource("owner/reports", split="test").split
    'test'
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
                f"{self.name}: no such file or folder, and it could not be loaded as a data set of the hub: {reason}",
                hint="Check the spelling, the network and `hf auth login`.",
            ) from error

    def rows(self) -> Iterator[Row]:
        for index, value in enumerate(self._load()):
            yield Row(f"{self.name} ({self.split}), record {index}", value)

    def fingerprint(self) -> str:
        from typst_lit._compat.datasets import fingerprint

        return fingerprint(self._load())


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
        first_character = start.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        stream.seek(0)
        is_lines = file.suffix.lower() in (".jsonl", ".ndjson")
        if not first_character:
            yield Row(str(file), error="is empty: it must contain at least one record")
        elif first_character == b"[" and not (is_lines and _starts_with_line(stream)):
            stream.seek(0)
            yield from _ListReader(file, stream).rows()
        elif not is_lines and not _is_object(stream.readline()):
            yield _single_value_row(file)
        else:
            stream.seek(0)
            yield from _line_rows(file, stream)


def _starts_with_line(stream: BinaryIO) -> bool:
    """Returns whether the list at the start of a file is one of several lines, and not a list of records."""
    try:
        value = json.loads(stream.readline().removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return False
    return bool(stream.readline().strip()) or not all(isinstance(element, dict) for element in value) or not value


def _is_object(line: bytes) -> bool:
    """Returns whether a line is a complete JSON object: then the file contains one record, or one per line."""
    try:
        return isinstance(json.loads(line.removeprefix(codecs.BOM_UTF8)), dict)
    except (ValueError, RecursionError):
        return False


def _single_value_row(file: Path) -> Row:
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
        error=f"has {type_name(value)} at the top level: it must be a list of records, one record, or one per line",
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


class _ListReader:
    """Reads the elements of a JSON list one by one, with their line numbers.

    Only the text of the current element is in memory. Bytes that are not UTF-8 make an error of their element alone.

    Args:
        file: the name of the file, for the origins.
        stream: the file, at its start.
    """

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        # Bytes that are not UTF-8 become surrogates, so that the elements around them can be read.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._parse = json.JSONDecoder().raw_decode
        self._text = ""
        self._position = 0  # in the text: what is before it has been parsed
        self._line = 1  # number of the line at the position
        self._is_complete = False  # whether the end of the file has been read

    def rows(self) -> Iterator[Row]:
        """Yields a row per element; the last has an error if the rest of the file can't be parsed."""
        index = 0
        try:
            self._next_character()
            self._advance(self._position + 1)  # the opening bracket
            while (character := self._next_character()) != "]":
                if index:
                    if character != ",":
                        raise ValueError(f"expected ',' or ']' after record {index - 1}")
                    self._advance(self._position + 1)
                    self._next_character()
                value, end = self._parse_element()
                origin = f"{self._file}, record {index} (line {self._line})"
                not_utf8 = NOT_UTF8.search(self._text, self._position, end)
                self._advance(end)
                yield Row(origin, error=_not_utf8(ord(not_utf8[0]) & 0xFF)) if not_utf8 else Row(origin, value)
                index += 1
            self._advance(self._position + 1)
            if self._next_character():
                raise ValueError("there is more text after the end of the list")
            if not index:
                yield Row(str(self._file), error="is an empty list: it must contain at least one record")
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            rest = f"; the records after record {index - 1} could not be read" if index else ""
            yield Row(f"{self._file}, line {self._line}", error=f"is not valid JSON: {reason}{rest}")

    def _next_character(self) -> str:
        """Skips white space and returns the character after it, or empty text at the end of the file."""
        while True:
            match = WHITE_SPACE.match(self._text, self._position)
            assert match is not None
            self._advance(match.end())
            if self._position < len(self._text) or self._is_complete:
                return self._text[self._position : self._position + 1]
            self._read_more()

    def _parse_element(self) -> tuple[Any, int]:
        """Returns the value at the position, and the position of its end."""
        while True:
            try:
                value, end = self._parse(self._text, self._position)
                if end < len(self._text) or self._is_complete:  # else it may be the start of a longer number
                    return value, end
            except ValueError:
                if self._is_complete or len(self._text) - self._position > MAX_RECORD_CHARS:
                    raise
            self._read_more()

    def _read_more(self) -> None:
        unparsed = self._text[self._position :]
        # As much again as there is, so that a long element is not parsed again for each chunk of it.
        chunk = self._stream.read(max(CHUNK_BYTES, len(unparsed)))
        self._is_complete = not chunk
        self._text, self._position = unparsed + self._decoder.decode(chunk, final=self._is_complete), 0

    def _advance(self, position: int) -> None:
        self._line += self._text.count("\n", self._position, position)
        self._position = position


def _not_utf8(byte: int, where: str = "") -> str:
    return f"is not UTF-8 text{where}: invalid byte 0x{byte:02x}; save it as UTF-8"
