"""Results in shards: a folder of ``part-00000.jsonl``, ... and the manifest that vouches for them.

A shard holds the results of so many consecutive records, a line each, and its name is a function of their place. It is
written whole or not at all: made twice, it is one file all the same. What the manifest names with its SHA-256 is there,
and what it does not name, or names otherwise, is made anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256 as new_digest
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typst_lit.data.sources import Row
from typst_lit.errors import UserError
from typst_lit.files import atomic_write, sha256
from typst_lit.inference.generator import GenerationFailure
from typst_lit.inference.outputs import check_same_settings

if TYPE_CHECKING:
    from typst_lit.inference.attempts import GeneratedDocument
    from typst_lit.inference.generator import Generator

MANIFEST = "manifest.json"
SECONDS_BETWEEN_MANIFESTS = 1.0
WAY_OUT = "Name another folder, or overwrite it (--overwrite)."


@dataclass(frozen=True)
class Shard:
    """A file of results.

    Attributes:
        name: of the file.
        first: place of its first record among all.
        records: how many it answers.
        failed: those of them that have an error and no document.
        not_compiled: those whose document does not compile.
        bytes: its length.
        sha256: its digest.
    """

    name: str
    first: int
    records: int
    failed: int
    not_compiled: int
    bytes: int
    sha256: str


class ShardFolder:
    """A folder of shards.

    Every process of a job has one of its own over the same folder: one lays out the records and keeps the manifest,
    the others make shards.

    Args:
        path: the folder.
        size: records a shard.
    """

    def __init__(self, path: Path, size: int) -> None:
        if size < 1:
            raise UserError(f"--shard-size must be 1 or more, not {size}.")
        self.path = path
        self.size = size
        self.shards: dict[int, Shard] = {}
        self._making: dict[str, Any] = {}
        self._expected: int | None = None
        self._written = 0.0

    def begin(self, making: Mapping[str, Any], overwrite: bool = False) -> None:
        """Takes over the whole shards that are there already, and removes what is left of others.

        Args:
            making: what the results depend on, the records among it, as plain values.
            overwrite: start anew.

        Raises:
            UserError: when the folder holds results that were made otherwise, or that no manifest vouches for.
        """
        self._making = {**making, "shard_size": self.size}
        before = None if overwrite else self._read()
        if before is not None:
            check_same_settings(self.path, before["made"], self._making, WAY_OUT)
            for each in before["shards"]:
                shard = Shard(**each)
                path = self.path / shard.name
                if path.is_file() and path.stat().st_size == shard.bytes and sha256(path) == shard.sha256:
                    self.shards[shard.first // self.size] = shard
        kept = {shard.name for shard in self.shards.values()}
        for path in [*self.path.glob("part-*.jsonl"), *self.path.glob(".part-*.jsonl-*")]:
            if path.name not in kept:
                path.unlink()
        shutil.rmtree(self._records, ignore_errors=True)
        self.save()

    def lay_out(self, rows: Iterable[Row]) -> tuple[int, list[int]]:
        """Writes the records of each shard that is to be made into a file, where whoever makes it finds them.

        So the input is read once, whatever its form, and no process holds more of it than a shard.

        Returns:
            How many shards there are, and which are to be made.
        """
        stream, number, missing = iter(rows), 0, []
        while part := list(islice(stream, self.size)):
            if number not in self.shards:
                missing.append(number)
                # what Parquet knows and JSON does not, a date say, becomes text
                body = json.dumps([asdict(row) for row in part], default=str).encode()
                atomic_write(self._records_of(number), lambda stream, body=body: stream.write(body))  # type: ignore[misc]
            number += 1
        self._expected = number
        return number, missing

    def make(self, number: int, generator: Generator, adapter: str | None) -> Shard:
        """Answers the records of a shard, each with its document or its error, and writes it.

        Raises:
            Exception: what went wrong with every one of several good records; then it is not the records' fault.
        """
        rows = [Row(**row) for row in json.loads(self._records_of(number).read_bytes())]
        answers: dict[int, GeneratedDocument | Exception] = {
            place: UserError(row.error) for place, row in enumerate(rows) if row.error is not None
        }
        places = [place for place, row in enumerate(rows) if row.error is None]
        for result in generator.results([rows[place].value for place in places], adapter):
            answers[places[result.index]] = result.error if isinstance(result, GenerationFailure) else result
        errors = [answer for answer in answers.values() if isinstance(answer, Exception)]
        broken = [error for error in errors if not isinstance(error, UserError)]
        if len(places) > 1 and len(broken) == len(places):
            raise broken[0]
        first = number * self.size
        body = b"".join(_line(first + place, row, answers[place]) for place, row in enumerate(rows))
        shard = Shard(
            f"part-{number:05d}.jsonl",
            first,
            len(rows),
            len(errors),
            sum(not isinstance(answer, Exception) and answer.compiled is False for answer in answers.values()),
            len(body),
            new_digest(body).hexdigest(),
        )
        atomic_write(self.path / shard.name, lambda stream: stream.write(body))
        return shard

    def add(self, shard: Shard) -> None:
        """Notes a shard that was made; the manifest on the disk has it within moments."""
        self.shards[shard.first // self.size] = shard
        if time.monotonic() - self._written > SECONDS_BETWEEN_MANIFESTS:
            self.save()

    def total(self, count: str) -> int:
        """Returns the sum of a count over all shards: ``records``, ``failed`` or ``not_compiled``."""
        return sum(getattr(shard, count) for shard in self.shards.values())

    def save(self) -> None:
        """Writes the manifest; once all shards are made, their records are needed no longer."""
        complete = len(self.shards) == self._expected
        manifest = {
            "complete": complete,
            **{count: self.total(count) for count in ("records", "failed", "not_compiled")},
            "made": self._making,
            "shards": [asdict(self.shards[number]) for number in sorted(self.shards)],
        }
        body = json.dumps(manifest, indent=1).encode()
        atomic_write(self.path / MANIFEST, lambda stream: stream.write(body))
        self._written = time.monotonic()
        if complete:
            shutil.rmtree(self._records, ignore_errors=True)

    @property
    def _records(self) -> Path:
        return self.path / "records"

    def _records_of(self, number: int) -> Path:
        return self._records / f"part-{number:05d}.json"

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / MANIFEST).read_text("utf-8"))
            return {"made": dict(found["made"]), "shards": list(found["shards"])}
        except FileNotFoundError:
            if next(self.path.glob("part-*.jsonl"), None) is None:
                return None
            raise UserError(f"{self.path}: holds shards and no {MANIFEST}. {WAY_OUT}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path / MANIFEST}: is damaged ({error!r}). {WAY_OUT}") from error


def _line(place: int, row: Row, answer: GeneratedDocument | Exception) -> bytes:
    result: dict[str, Any] = {"record": place, "origin": row.origin}
    if isinstance(answer, Exception):
        error = str(answer) if isinstance(answer, UserError) else f"{type(answer).__name__}: {answer}"
        result |= {"input": _plain(row.value), "error": error}
    else:
        result |= answer.to_json()
    # what UTF-8 has no place for, half a surrogate pair, is written as JSON's escape of it
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: object) -> Any:
    """Returns a record that can't be used as every JSON reader takes it: Python's knows NaN."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return str(value)
    return value
