"""Results on disk: a JSON list that is valid after every write, and names of the files next to it."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typst_lit.data.sources import FileSource
from typst_lit.errors import UserError, plural
from typst_lit.locking import FileLock
from typst_lit.manifest import Manifest, check_output, is_listed, remove_output, write_output

if TYPE_CHECKING:
    from typst_lit.inference.attempts import GeneratedDocument

log = logging.getLogger(__name__)
LOCK_HINT = "Wait until it ends, stop it, or use another `output`."
DOCUMENT_HINT = "Move it, write the documents to another directory (`typ_dir`), or use `overwrite=true` to start again."


class ResultFile:
    """A JSON list in a file, one result per line, that grows at its end and is a valid list after every write.

    The provenance of the results, what they depend on in addition to their records, is in a file next to it
    (``.run.json``). Both are files of this program (`typst_lit.manifest`).

    Args:
        path: the file.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as directory:
        ...     file = ResultFile(Path(directory) / "results.json")
        ...     file.start([], {"seed": 0})
        ...     file.append([{"generated_output": "= A"}])
        ...     file.read()
        [{'generated_output': '= A'}]
    """

    HINT = "Use another `output`, or `overwrite=true`."
    END = b"\n]\n"  # the next result overwrites it

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def read(self) -> list[Any]:
        """Returns the complete results of the file, without a last one that was cut off; [] when there is no file."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return []
        return [row.value for row in FileSource(str(self.path)).rows() if row.error is None]

    def resume(self, provenance: Mapping[str, Any], hint: str = HINT) -> list[Any]:
        """Returns the results that already exist, if they have this provenance.

        Args:
            provenance: what results depend on in addition to their records, as plain values.
            hint: what the user can do if it differs.

        Raises:
            UserError: naming what differs.
        """
        results = self.read()
        before = self._read_provenance(hint) if results else None
        if before is not None:
            check_same_settings(self.path, before, provenance, hint)
        return results

    def check(self, provenance: Mapping[str, Any], overwrite: bool = False) -> None:
        """Checks that both files may be written. Results of earlier versions, which no manifest lists, may.

        Args:
            provenance: of the results: those of earlier versions are recognized by theirs.
            overwrite: whether to replace files of the user.

        Raises:
            UserError: when one of them belongs to the user, or is not a regular file.
        """
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"{self.path}: is not a regular file.", hint="Use another `output`.")
        overwrite = overwrite or self._is_of_earlier_version(provenance)
        for path in (self.path, self._provenance_path):
            check_output(path, overwrite, hint=self.HINT)

    def _is_of_earlier_version(self, provenance: Mapping[str, Any]) -> bool:
        if not self.path.is_file() or is_listed(self.path):
            return False
        try:
            before = self._read_provenance(self.HINT)
        except UserError:
            return False
        return bool(before) and not provenance.keys().isdisjoint(before or {})

    def _read_provenance(self, hint: str) -> dict[str, Any] | None:
        """Returns the provenance of the file's results; None when there is no file of it."""
        path = self._provenance_path
        try:
            provenance = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is damaged ({error}).", hint=hint) from error
        if not isinstance(provenance, dict):
            raise UserError(f"{path}: is damaged (it is not a JSON object).", hint=hint)
        return provenance

    def start(self, results: Sequence[Any], provenance: Mapping[str, Any]) -> None:
        """Writes the results to continue after, and the provenance of all; `check` comes before."""
        Manifest.of(self.path.parent).add([self.path.name, self._provenance_path.name])
        self.write(results)
        write_output(self._provenance_path, (json.dumps(provenance, indent=2) + "\n").encode())

    @property
    def _provenance_path(self) -> Path:
        return self.path.with_suffix(".run.json")

    def write(self, results: Sequence[Any]) -> None:
        """Replaces the file's results, atomically."""
        body = b",\n".join(map(_encode, results))
        write_output(self.path, b"[\n" + body + self.END, hint=self.HINT)
        self.count = len(results)

    def append(self, results: Sequence[Any]) -> None:
        """Adds results and flushes them to the disk.

        Raises:
            UserError: when that fails, as on a full disk; the file then is as it was.
        """
        body = b",\n".join(map(_encode, results))
        rest = memoryview((b",\n" if self.count else b"") + body + self.END)
        with self.path.open("r+b", buffering=0) as stream:
            end = stream.seek(-len(self.END), os.SEEK_END)
            try:
                while rest:
                    rest = rest[stream.write(rest) :]
                os.fsync(stream.fileno())
            except OSError as error:
                stream.truncate(end)
                stream.seek(end)
                stream.write(self.END)
                raise UserError(
                    f"{self.path} could not be written ({error.strerror}). The {self.count} results before are intact.",
                    hint="Free some disk space, and run the same command again.",
                ) from error
        self.count += len(results)


class RecordResults:
    """The results of a list of records in a `ResultFile`. Those that a file already has are not generated again.

    This process is the only one that writes the file until `close`, or the end of the ``with`` block.

    Args:
        path: the file. Nothing is written before `start`.
        records: the fields of each record; a record that occurs several times has one result.
        provenance: what the results depend on in addition to their records.
        overwrite: start again where results exist.

    Attributes:
        missing: the indices of the records that have no result in the file when this is created.

    Raises:
        UserError: when another process writes the file, when it belongs to the user, or when it has results of other
            records, or with another provenance.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> records = [{"title": "A"}, {"title": "B"}]
        >>> with TemporaryDirectory() as directory:
        ...     with RecordResults(f"{directory}/results.json", records, {"seed": 0}) as results:
        ...         results.start()
        ...         results.add(1, {"input": {"title": "B"}, "generated_output": "= B"})
        ...     with RecordResults(f"{directory}/results.json", records, {"seed": 0}) as results:
        ...         results.missing
        [0]
    """

    def __init__(
        self,
        path: str | Path,
        records: Sequence[Mapping[str, Any]],
        provenance: Mapping[str, Any],
        overwrite: bool = False,
    ) -> None:
        self.file = ResultFile(Path(path))
        self._provenance = provenance
        self._keys = [_key(record) for record in records]
        self.file.check(provenance, overwrite)
        self._lock = FileLock(self.file.path, LOCK_HINT)
        try:
            existing = [] if overwrite else self.file.resume(provenance)
            self._by_key = {_key(result.get("input")): result for result in existing if isinstance(result, dict)}
            if unmatched := self._by_key.keys() - set(self._keys):
                raise UserError(
                    f"{path}: contains {plural(len(unmatched), 'result')} of other records.", hint=ResultFile.HINT
                )
        except BaseException:
            self.close()
            raise
        indices = {key: index for index, key in reversed([*enumerate(self._keys)])}
        self.missing = sorted(index for key, index in indices.items() if key not in self._by_key)
        if self._by_key:
            log.info("%d of %d documents already exist.", len(indices) - len(self.missing), len(indices))

    def __enter__(self) -> RecordResults:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Writes the results that already exist, and the provenance."""
        self.file.start(list(self._by_key.values()), self._provenance)

    def close(self) -> None:
        """Lets other processes write the file."""
        self._lock.release()

    def add(self, index: int, result: dict[str, Any]) -> None:
        """Appends the result of a record to the file."""
        self._by_key[self._keys[index]] = result
        self.file.append([result])

    def finish(self) -> list[dict[str, Any]]:
        """Writes the results in the order of their records, and returns them."""
        results = [self._by_key[key] for key in self._keys if key in self._by_key]
        self.file.write(results)
        return results


def _key(record: object) -> str:
    return json.dumps(record, sort_keys=True, ensure_ascii=False)


def write_document(document: GeneratedDocument, directory: Path, pdf: bool = False, overwrite: bool = False) -> Path:
    """Writes a document as a ``.typ`` file, and its PDF, if it compiled and one is asked for.

    The PDF that this program wrote for an earlier version of the document is deleted, if this one does not compile.

    Returns:
        The path of the ``.typ`` file; see `file_name`.

    Raises:
        UserError: when a file of the user has its name, unless ``overwrite`` replaces it.
    """
    path = directory / file_name(document.index, document.input)
    write_output(path, document.source.encode(), overwrite, hint=DOCUMENT_HINT)
    if pdf and document.result is not None:
        if document.result.ok:
            write_output(path.with_suffix(".pdf"), document.result.pdf, overwrite, hint=DOCUMENT_HINT)
        else:
            remove_output(path.with_suffix(".pdf"))
    return path


def check_documents(
    directory: Path,
    records: Sequence[Mapping[str, Any]],
    indices: Iterable[int],
    pdf: bool = False,
    overwrite: bool = False,
) -> None:
    """Checks that `write_document` may write the files of these records.

    Raises:
        UserError: when a file of the user has the name of one of them.
    """
    for index in indices:
        path = directory / file_name(index, records[index])
        for suffix in (".typ", ".pdf") if pdf else (".typ",):
            check_output(path.with_suffix(suffix), overwrite, hint=DOCUMENT_HINT)


def _encode(result: Any) -> bytes:
    # backslashreplace: a lone surrogate, which UTF-8 cannot encode, becomes JSON's escape of it
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace")


def check_same_settings(path: Path, before: Mapping[str, Any], provenance: Mapping[str, Any], hint: str) -> None:
    """Checks that results may be continued, because they have the same provenance.

    Args:
        path: of the results.
        before: their provenance, as it was read from a file.
        provenance: that of further results.
        hint: what the user can do if it differs.

    Raises:
        UserError: naming what differs.
    """
    now = json.loads(json.dumps(provenance))
    if changed := sorted(key for key in {**before, **now} if before.get(key) != now.get(key)):
        raise UserError(
            f"{path}: contains results that were generated with different settings ({', '.join(changed)}).", hint=hint
        )


def file_name(index: int, record: Mapping[str, Any]) -> str:
    """Returns the name of a record's ``.typ`` file: its index, and its title or first text.

    Example:
        >>> file_name(3, {"project_title": "Rain in May"})
        '0003-rain-in-may.typ'
    """
    title = str(record.get("project_title") or next((v for v in record.values() if isinstance(v, str)), ""))
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
    return f"{index:04d}-{slug}.typ" if slug else f"{index:04d}.typ"
