"""Results in shards: a directory of ``part-00000.jsonl``, ... and a manifest that lists them with checksums.

A shard has the results of N consecutive records, one per line, and its name follows from its index. It is written
atomically, so that generating it twice does no harm. A shard that the manifest does not list, or whose SHA-256 differs,
is generated again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

from typst_lit.data.sources import Row
from typst_lit.errors import UserError
from typst_lit.files import atomic_write, remove_reserved, sha256
from typst_lit.inference.attempts import GeneratedDocument
from typst_lit.inference.generator import GenerationFailure, Generator
from typst_lit.inference.outputs import check_same_settings
from typst_lit.inference.records import standard_json
from typst_lit.inference.summary import DocumentCounts
from typst_lit.locking import RESERVED_PREFIX
from typst_lit.manifest import Manifest, check_directory, check_output, claim_directory, remove_output
from typst_lit.progress import Every

MANIFEST_NAME = "manifest.json"
INPUT_DIRECTORY = f"{RESERVED_PREFIX}records"
_SHARD_NAME = re.compile(r"part-\d{5,}\.jsonl")
SECONDS_BETWEEN_MANIFESTS = 1.0
COUNTS = ("records", "failed", "not_compiled", "clean", "not_clean")  # of a shard, and in the manifest
HINT = "Use another `output`, or `overwrite=true`."
DIRECTORY_HINT = "Use another `output`: shards are written to a directory of their own."
Outcome = GeneratedDocument | Exception


@dataclass(frozen=True)
class Shard:
    """A file of results, as the manifest lists it.

    Attributes:
        name: name of the file.
        first: index of its first record among all records.
        records: number of its records.
        failed: number of records that have an error instead of a document.
        not_compiled: number of documents that do not compile.
        clean: number of clean documents.
        not_clean: number of those that are not; of an adapter without a text contract, it is not known.
        bytes: size of the file.
        sha256: checksum of the file, in hexadecimal.
    """

    name: str
    first: int
    records: int
    failed: int
    not_compiled: int
    clean: int
    not_clean: int
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, value: object, shard_size: int) -> Shard:
        """Returns the shard that a manifest describes.

        Raises:
            ValueError: when fields are missing, unknown or of another type, or the name is not that of its index.
        """
        types = get_type_hints(cls)
        if isinstance(value, dict):
            value = {"clean": 0, "not_clean": 0, **value}  # earlier versions do not have them
        if not isinstance(value, dict) or {name: type(field) for name, field in value.items()} != types:
            raise ValueError(f"a shard must have the fields {', '.join(types)}")
        shard = cls(**value)
        if shard.first < 0 or shard.first % shard_size or shard.name != shard_name(shard.first // shard_size):
            raise ValueError(f"the shard at record {shard.first} has the name {shard.name!r}")
        return shard


class ShardDirectory:
    """A directory of shards and their manifest.

    Every process of a job has its own instance for the same directory: the driver splits the records and keeps the
    manifest, the workers write shards.

    Args:
        path: the directory.
        shard_size: number of records per shard.

    Raises:
        UserError: when ``shard_size`` is not positive.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as path:
        ...     directory = ShardDirectory(Path(path), shard_size=2)
        ...     directory.start({"seed": 0})
        ...     directory.split(Row(f"line {number}", {}) for number in range(5))
        (3, [0, 1, 2])
    """

    def __init__(self, path: Path, shard_size: int) -> None:
        if shard_size < 1:
            raise UserError(f"must be 1 or more, not {shard_size}.", setting="shard_size")
        self.path = path
        self.shard_size = shard_size
        self.shards: dict[int, Shard] = {}
        self._provenance: dict[str, Any] = {}
        self._num_expected: int | None = None
        self._manifest_due = Every(SECONDS_BETWEEN_MANIFESTS)

    def start(self, provenance: Mapping[str, Any], overwrite: bool = False) -> None:
        """Adopts the intact shards that exist already, and deletes other shards of earlier jobs.

        Args:
            provenance: what the results depend on, the records included, as plain values.
            overwrite: start again from scratch.

        Raises:
            UserError: when the directory contains files of the user, or has results with different provenance.
        """
        claim_directory(self.path, "shards", _former_files, hint=DIRECTORY_HINT)
        self._provenance = {**provenance, "shard_size": self.shard_size}
        manifest = None if overwrite else self._read_manifest()
        if manifest is not None:
            check_same_settings(self.path, manifest["provenance"], self._provenance, HINT)
            try:
                shards = [Shard.from_json(value, self.shard_size) for value in manifest["shards"]]
            except ValueError as error:
                raise UserError(f"{self.path / MANIFEST_NAME}: is damaged ({error}).", hint=HINT) from error
            self.shards = {shard.first // self.shard_size: shard for shard in shards if self._is_intact(shard)}
        adopted = {shard.name for shard in self.shards.values()}
        check_output(self.path / MANIFEST_NAME, hint=HINT)
        Manifest.of(self.path).add([MANIFEST_NAME])
        for path in self.path.iterdir():
            if _SHARD_NAME.fullmatch(path.name) and path.name not in adopted:
                remove_output(path)
        remove_reserved(self._input_directory)
        self.write_manifest()

    def check(self) -> None:
        """Checks that the directory is new, empty or one of shards.

        Raises:
            UserError: when it contains files of the user.
        """
        check_directory(self.path, "shards", _former_files, hint=DIRECTORY_HINT)

    def split(self, rows: Iterable[Row]) -> tuple[int, list[int]]:
        """Writes the records of each missing shard into a file, from which a worker reads them.

        So the source is read once, whatever its format, and no process holds more than a shard of it.

        Returns:
            The number of shards, and the indices of the missing ones.
        """
        iterator, num_shards, missing = iter(rows), 0, []
        while chunk := list(islice(iterator, self.shard_size)):
            if num_shards not in self.shards:
                missing.append(num_shards)
                # default: values that Parquet has and JSON has not, such as dates, become text
                body = json.dumps([asdict(row) for row in chunk], default=str).encode()
                atomic_write(self._input_path(num_shards), body)
            num_shards += 1
        self._num_expected = num_shards
        names = [shard_name(index) for index in missing]
        for name in names:
            check_output(self.path / name, hint=DIRECTORY_HINT)
        Manifest.of(self.path).add(names)  # here and not in `generate`, whose processes may be on other machines
        return num_shards, missing

    def generate(self, index: int, generator: Generator, adapter: str | None = None) -> Shard:
        """Writes one shard: for each of its records the document, or else the error.

        Raises:
            Exception: when none of several valid records has a document: then the cause is not a record.
        """
        rows = [Row(**row) for row in json.loads(self._input_path(index).read_bytes())]
        outcomes = _outcomes(rows, generator, adapter)
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        failures = [error for error in errors if not isinstance(error, UserError)]
        if len(failures) == sum(row.error is None for row in rows) > 1:
            raise failures[0]
        counts = DocumentCounts()
        for outcome in outcomes:
            if isinstance(outcome, GeneratedDocument):
                counts.add(outcome)
        first = index * self.shard_size
        body = b"".join(
            _line(first + i, row, outcome) for i, (row, outcome) in enumerate(zip(rows, outcomes, strict=True))
        )
        shard = Shard(
            name=shard_name(index),
            first=first,
            records=len(rows),
            failed=len(errors),
            not_compiled=counts.not_compiled,
            clean=counts.clean,
            not_clean=counts.not_clean,
            bytes=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
        )
        atomic_write(self.path / shard.name, body)
        return shard

    def add(self, shard: Shard) -> None:
        """Adds a shard that was written to the manifest, which is on disk within seconds."""
        self.shards[shard.first // self.shard_size] = shard
        if self._manifest_due():
            self.write_manifest()

    def total(self, count: str) -> int:
        """Returns the sum of one of `COUNTS` over all shards."""
        return sum(getattr(shard, count) for shard in self.shards.values())

    def write_manifest(self) -> None:
        """Writes the manifest, and deletes the workers' input once all shards exist."""
        complete = len(self.shards) == self._num_expected
        manifest = {
            "complete": complete,
            **{count: self.total(count) for count in COUNTS},
            "provenance": self._provenance,
            "shards": [asdict(self.shards[index]) for index in sorted(self.shards)],
        }
        atomic_write(self.path / MANIFEST_NAME, json.dumps(manifest, indent=1).encode())
        if complete:
            remove_reserved(self._input_directory)

    @property
    def _input_directory(self) -> Path:
        return self.path / INPUT_DIRECTORY

    def _input_path(self, index: int) -> Path:
        return self._input_directory / f"part-{index:05d}.json"

    def _is_intact(self, shard: Shard) -> bool:
        path = self.path / shard.name
        return path.is_file() and path.stat().st_size == shard.bytes and sha256(path) == shard.sha256

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.path / MANIFEST_NAME
        try:
            manifest = json.loads(path.read_text("utf-8"))
            return {"provenance": _read_provenance(manifest), "shards": list(manifest["shards"])}
        except FileNotFoundError:
            if next(self.path.glob("part-*.jsonl"), None) is None:
                return None
            raise UserError(f"{self.path}: contains shards but no {MANIFEST_NAME}.", hint=HINT) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: is damaged ({error!r}).", hint=HINT) from error


def shard_name(index: int) -> str:
    """Returns the name of the file of a shard.

    >>> shard_name(3)
    'part-00003.jsonl'
    """
    return f"part-{index:05d}.jsonl"


def _former_files(directory: Path) -> list[str] | None:
    """Returns the files of shards that a version without manifests of directories wrote; None if it wrote none."""
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_bytes())
        is_ours = {"complete", "records", "shards"} <= manifest.keys() and bool(_read_provenance(manifest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    shards = [path.name for path in directory.iterdir() if _SHARD_NAME.fullmatch(path.name)]
    return [MANIFEST_NAME, *shards] if is_ours else None


def _read_provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the provenance in a manifest, which may have the keys of earlier versions."""
    provenance = dict(manifest["provenance"] if "provenance" in manifest else manifest["made"])
    if "generation.draft" in provenance:
        provenance["generation.prompt_lookup"] = provenance.pop("generation.draft")
    return provenance


def _outcomes(rows: list[Row], generator: Generator, adapter: str | None) -> list[Outcome]:
    """Returns a document or an error for each row."""
    outcomes: dict[int, Outcome] = {i: UserError(row.error) for i, row in enumerate(rows) if row.error is not None}
    indices = [i for i, row in enumerate(rows) if row.error is None]
    for result in generator.results([rows[i].value for i in indices], adapter):
        outcomes[indices[result.index]] = result.error if isinstance(result, GenerationFailure) else result
    return [outcomes[i] for i in range(len(rows))]


def _line(index: int, row: Row, outcome: Outcome) -> bytes:
    result: dict[str, Any] = {"record": index, "origin": row.origin}
    if isinstance(outcome, Exception):
        error = str(outcome) if isinstance(outcome, UserError) else f"{type(outcome).__name__}: {outcome}"
        result |= {"input": standard_json(row.value), "error": error}
    else:
        result |= outcome.to_json()
    # backslashreplace: a lone surrogate, which UTF-8 cannot encode, becomes JSON's escape of it
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
