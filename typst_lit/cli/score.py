"""``typst-lit score``: scores and a report for documents that exist already, from any tool."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from typst_lit.cli.parser import CommandParser
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.data.records import parse_record
from typst_lit.data.sources import FileSource, open_source
from typst_lit.data.table import load_records
from typst_lit.errors import UserError, listing
from typst_lit.metrics.documents import Candidate
from typst_lit.metrics.scoring import Scorer
from typst_lit.plugins import load_plugins
from typst_lit.progress import LOG_INTERVAL_S
from typst_lit.reporting.report import REPORT_FILES, Report
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
SOURCE_FIELDS = ("generated_output", "output", "typst", "source", "completion", "response", "text")


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit score", description=run.__doc__)
    made.add_argument(
        "results",
        type=str,
        help="A JSON list or JSON lines, each item with a Typst source and, if possible, its 'input'; or a .typ file, "
        "or a folder of such in the order of the references.",
    )
    made.add_argument("--references", type=str | None, default=None, help="The pairs: any data that fit takes.")
    made.add_argument(
        "--field",
        type=str | None,
        default=None,
        help=f"The field of the source; by default {', '.join(SOURCE_FIELDS)}.",
    )
    made.add_argument("--template", type=PromptTemplate | None, default=None, help="Names the fields of a record.")
    made.add_argument("--output_dir", type=str | None, default=None, help="Where the report goes; beside the results.")
    made.add_class_arguments(Typesetter, "typesetting")
    return made


class Generated(NamedTuple):
    """A source that some tool made, where it stood, and the record it was made of, if that is told."""

    origin: str
    source: str
    fields: dict[str, Any] | None


def run(args: Sequence[str]) -> None:
    """Compiles and scores documents that exist already, and writes report.html and report.json."""
    sys.path.insert(0, "")
    load_plugins()
    made = parser()
    config = made.instantiate_classes(made.parse_args(list(args)))
    template = config.template or ReportPrompt()
    path = Path(config.results)
    directory = Path(config.output_dir) if config.output_dir else path.parent
    _check_output(directory, [path, *([Path(config.references)] if config.references else [])])
    candidates = _candidates(_generated(path, config.field, template), config.references, template)
    scorer = Scorer(config.typesetting)
    report = Report(scorer, {"results": str(path), "references": config.references or "none"})
    told = time.monotonic()
    with config.typesetting:
        for index, document in enumerate(scorer.score(candidates)):
            report.add(document, index)
            if time.monotonic() - told > LOG_INTERVAL_S:
                told = time.monotonic()
                log.info("  %d of %d scored", index + 1, len(candidates))
    values = scorer.compute()
    for name, value in values.items():
        print(f"{name:<18}{value:.4f}")
    print(f"\nreport: {report.write(directory, values)}")


def _check_output(directory: Path, inputs: Sequence[Path]) -> None:
    """Makes the folder, before any work is done, and sees to it that no input is written over."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in inputs:
        if path.resolve() in [(directory / name).resolve() for name in REPORT_FILES]:
            raise UserError(f"{path}: the report would be written over it. Name another folder with --output_dir.")


def _generated(path: Path, field: str | None, template: PromptTemplate) -> list[Generated]:
    files = [path] if path.suffix == ".typ" else sorted(path.glob("*.typ")) if path.is_dir() else []
    if files:
        return [Generated(str(file), file.read_text("utf-8", "replace"), None) for file in files]
    found, faults = [], []
    for row in FileSource(str(path)).rows():
        source, fault = (None, row.error) if row.error else _source_in(row.value, field)
        if source is None:
            faults.append(f"{row.origin}: {fault}")
            continue
        fields = None
        if isinstance(row.value, dict) and "input" in row.value:
            parsed = parse_record({"input": row.value["input"]}, template.fields, needs_reference=False)
            faults += [f"{row.origin}: {fault}" for fault in parsed.errors]
            fields = parsed.fields
        found.append(Generated(row.origin, source, fields))
    if faults:
        raise UserError(f"{path}: {len(faults)} of its items can't be used:\n{listing(faults)}")
    if not found:
        raise UserError(f"{path}: there is no document in it.")
    return found


def _source_in(value: object, field: str | None) -> tuple[str | None, str]:
    """Returns the Typst source in an item, or None and what is wrong."""
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, dict):
        return None, "an item must be text, or an object with a Typst source"
    name = field or next((name for name in SOURCE_FIELDS if isinstance(value.get(name), str)), None)
    if name is not None and isinstance(value.get(name), str):
        return value[name], ""
    looked = f"field '{field}' is not" if field else f"none of {', '.join(SOURCE_FIELDS)} is"
    there = ", ".join(map(str, value)) or "nothing"
    return None, f"{looked} a field with text (there is: {there}); name the field of the source with --field"


def _candidates(generated: Sequence[Generated], references: str | None, template: PromptTemplate) -> list[Candidate]:
    """Puts each source together with its record and reference.

    Raises:
        UserError: when it is not clear which reference belongs to which source.
    """
    if references is None:
        bare = [each.origin for each in generated if each.fields is None]
        if bare:
            raise UserError(f"{bare[0]}: says nothing of its record ('input'): name the pairs with --references.")
        return [Candidate(each.origin, each.fields or {}, template.body_field, each.source) for each in generated]
    rows: list[Mapping[str, Any]] = list(load_records(open_source(references), template))
    names = [field.name for field in template.fields]
    if all(each.fields is not None for each in generated):
        by_record = {_key(row, names): row for row in rows}
        matched = [by_record.get(_key(each.fields or {}, names)) for each in generated]
        strangers = [each.origin for each, row in zip(generated, matched, strict=True) if row is None]
        if strangers:
            raise UserError(
                f"{references}: has no pair for {len(strangers)} of {len(generated)} documents, whose 'input' is not "
                f"among its records:\n{listing(strangers)}"
            )
    elif len(generated) == len(rows):
        matched = list(rows)
        for each, row in zip(generated, rows, strict=True):
            if each.fields is not None and _key(each.fields, names) != _key(row, names):
                raise UserError(
                    f"{each.origin}: was made of another record than the one in its place ({row['origin']}). Give "
                    "all documents their 'input', or put them in the order of the references."
                )
    else:
        raise UserError(
            f"{len(generated)} documents, but {len(rows)} pairs in {references}, and the documents do not say which "
            "record they were made of ('input'). Give as many of both, in the same order."
        )
    return list(_matched(generated, matched, names, template))


def _matched(
    generated: Sequence[Generated], rows: Sequence[Any], names: Sequence[str], template: PromptTemplate
) -> Iterator[Candidate]:
    for each, row in zip(generated, rows, strict=True):
        yield Candidate(each.origin, {n: row[n] for n in names}, template.body_field, each.source, row["reference"])


def _key(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return json.dumps([row[name] for name in names])
