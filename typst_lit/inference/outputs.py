"""Results on disk: a JSON list that is whole after every write, and the names of files beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typst_lit.data.sources import FileSource
from typst_lit.errors import UserError


class JsonListFile:
    """A JSON list in a file that grows at its end and is a whole list after every write.

    An item a line; the closing bracket is written over by the next item.
    """

    END = b"\n]\n"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def read(self) -> list[Any]:
        """Returns the whole items of the file, leaving out a last one that was cut off; none when there is no file."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return []
        return [row.value for row in FileSource(str(self.path)).rows() if row.error is None]

    def resume(self, making: Mapping[str, Any], way_out: str) -> list[Any]:
        """Returns the items that are there already, if they were made in the same way.

        Args:
            making: what the items depend on, beside their records, as plain values.
            way_out: what the user can do if they were not.

        Raises:
            UserError: naming what differs.
        """
        items = self.read()
        if items and self._about.is_file():
            check_same_settings(self.path, json.loads(self._about.read_text("utf-8")), making, way_out)
        return items

    def begin(self, items: Sequence[Any], making: Mapping[str, Any]) -> None:
        """Writes the items to go on after, and beside the file how they were made."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write(items)
        self._about.write_text(json.dumps(making, indent=2) + "\n", "utf-8")

    @property
    def _about(self) -> Path:
        return self.path.with_suffix(".run.json")

    def write(self, items: Sequence[Any]) -> None:
        """Replaces the file's items, atomically."""
        scratch = self.path.with_name(f".{self.path.name}.new")
        body = b",\n".join(self._line(item) for item in items)
        scratch.write_bytes(b"[\n" + body + self.END)
        scratch.replace(self.path)
        self.count = len(items)

    def append(self, items: Sequence[Any]) -> None:
        """Adds items and flushes them to the disk.

        Raises:
            UserError: when that fails, as on a full disk; the file then is as it was.
        """
        body = b",\n".join(self._line(item) for item in items)
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
                    f"{self.path}: could not be written ({error.strerror}). The {self.count} results before are whole: "
                    "free some space, and give the same command again."
                ) from error
        self.count += len(items)

    @staticmethod
    def _line(item: Any) -> bytes:
        return json.dumps(item, ensure_ascii=False).encode("utf-8")


def check_same_settings(path: Path, before: Mapping[str, Any], making: Mapping[str, Any], way_out: str) -> None:
    """Refuses to go on with results that were made in another way.

    Args:
        path: of the results.
        before: how they were made, as it was read from a file.
        making: how more would be made now.
        way_out: what the user can do.

    Raises:
        UserError: naming what differs.
    """
    now = json.loads(json.dumps(making))
    if changed := sorted(key for key in {**before, **now} if before.get(key) != now.get(key)):
        raise UserError(f"{path}: holds results that were made with other settings ({', '.join(changed)}). {way_out}")


def file_name(index: int, record: dict[str, Any]) -> str:
    """Returns the name of a record's ``.typ`` file: its place, and its title or first text."""
    title = str(record.get("project_title") or next((v for v in record.values() if isinstance(v, str)), ""))
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
    return f"{index:04d}-{slug}.typ" if slug else f"{index:04d}.typ"
