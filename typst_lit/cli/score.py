"""``typst-lit score``: scores and a report for existing documents, of any tool."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typst_lit.cli.parser import Command
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.data.records import parse_record
from typst_lit.data.sources import FileSource, open_source
from typst_lit.data.table import load_records
from typst_lit.errors import UserError, listing, plural
from typst_lit.metrics.documents import Candidate
from typst_lit.metrics.scoring import Scorer
from typst_lit.progress import Every
from typst_lit.reporting.report import REPORT_FILES, Report, check_report
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
SOURCE_FIELDS = ("generated_output", "output", "typst", "source", "completion", "response", "text")


class Source(NamedTuple):
    """A Typst source to score.

    Attributes:
        origin: source location: file, and line or index.
        text: the source.
        fields: the record that it was generated from, or None where that is not known.
        finish_reason: as in a result of ``generate``; empty where that is not known.
        repairs: likewise; None where they are not known.
    """

    origin: str
    text: str
    fields: dict[str, Any] | None
    finish_reason: str = ""
    repairs: list[str] | None = None

    def candidate(self, template: PromptTemplate, pair: Mapping[str, Any] | None = None) -> Candidate:
        """Returns the source with its record, or with that of a pair, and its reference."""
        fields = {field.name: pair[field.name] for field in template.fields} if pair else self.fields or {}
        reference = pair["reference"] if pair else ""
        body_field = template.body_field
        return Candidate(self.origin, fields, body_field, self.text, reference, self.finish_reason, self.repairs)


@Command
def score(
    results: str,
    *,
    references: str | None = None,
    field: str | None = None,
    template: PromptTemplate | None = None,
    output_dir: str | None = None,
    overwrite: bool = False,
    typesetting: Typesetter,
) -> None:
    """Compile and score existing documents, and write report.html and report.json.

    Args:
        results: A JSON list or JSON lines, each item with a Typst source and, if possible, its 'input'; or a .typ file,
            or a directory of them in the order of the references.
        references: The pairs: any data that fit takes.
        field: The field of an item that has the source. By default the first of generated_output, output, typst,
            source, completion, response, text.
        template: The prompt template, which names the fields of a record.
        output_dir: Where to write the report; by default next to the results.
        overwrite: Replace a report.html or report.json that another program wrote.
        typesetting: The limits of each document.
    """
    template = template or ReportPrompt()
    path = Path(results)
    directory = Path(output_dir) if output_dir else path.parent
    _check_output(directory, [path, *([Path(references)] if references else [])], overwrite)
    candidates = _candidates(_read_sources(path, field, template), references, template)
    scorer = Scorer(typesetting)
    report = Report(scorer, {"results": str(path), "references": references or "none"})
    log_due = Every()
    with typesetting:
        for index, document in enumerate(scorer.score(candidates)):
            report.add(document, index)
            if log_due():
                log.info("  %d of %d scored", index + 1, len(candidates))
    values = scorer.compute()
    width = max(map(len, (*values, "page_count_error"))) + 2
    for name, value in values.items():
        print(f"{name:<{width}}{value:.4f}")
    print(f"\nreport: {report.write(directory, values, overwrite)}")


def _check_output(directory: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Checks, before any work is done, that the report can be written and overwrites no input."""
    for path in inputs:
        if path.resolve() in [(directory / name).resolve() for name in REPORT_FILES]:
            raise UserError(f"{path}: the report would overwrite it.", hint="Name another directory with `output_dir`.")
    check_report(directory, overwrite)


def _read_sources(path: Path, field: str | None, template: PromptTemplate) -> list[Source]:
    files = [path] if path.suffix == ".typ" else sorted(path.glob("*.typ")) if path.is_dir() else []
    if files:
        return [Source(str(file), file.read_text("utf-8", "replace"), None) for file in files]
    sources, errors = [], []
    for row in FileSource(str(path)).rows():
        text, error = (None, row.error) if row.error else _source_text(row.value, field)
        if text is None:
            errors.append(f"{row.origin}: {error}")
            continue
        fields = None
        if isinstance(row.value, dict) and "input" in row.value:
            parsed = parse_record({"input": row.value["input"]}, template.fields, needs_reference=False)
            errors += [f"{row.origin}: {error}" for error in parsed.errors]
            fields = parsed.fields
        item = row.value if isinstance(row.value, dict) else {}
        finish_reason, repairs = item.get("finish_reason"), item.get("repairs")
        sources.append(
            Source(
                row.origin,
                text,
                fields,
                finish_reason if isinstance(finish_reason, str) else "",
                [str(repair) for repair in repairs] if isinstance(repairs, list) else None,
            )
        )
    if errors:
        raise UserError(f"{path}: {len(errors)} of its items can't be used:\n{listing(errors)}")
    if not sources:
        raise UserError(f"{path}: contains no documents.")
    return sources


def _source_text(item: object, field: str | None) -> tuple[str | None, str]:
    """Returns the Typst source of an item, or None and what is wrong."""
    if isinstance(item, str):
        return item, ""
    if not isinstance(item, dict):
        return None, "an item must be text, or an object with a Typst source"
    name = field or next((name for name in SOURCE_FIELDS if isinstance(item.get(name), str)), None)
    if name is not None and isinstance(item.get(name), str):
        return item[name], ""
    expected = f"'{field}' is not" if field else f"none of {', '.join(SOURCE_FIELDS)} is"
    fields = ", ".join(map(str, item)) or "none"
    return None, f"{expected} a field with text (its fields: {fields}); name the field of the source with `field`"


def _candidates(sources: Sequence[Source], references: str | None, template: PromptTemplate) -> list[Candidate]:
    """Joins each source with its record and reference.

    Raises:
        UserError: when it is not clear which reference belongs to which source.
    """
    if references is None:
        if bare := next((source for source in sources if source.fields is None), None):
            raise UserError(
                f"{bare.origin}: does not have its record ('input').", hint="Name the pairs with `references`."
            )
        return [source.candidate(template) for source in sources]
    pairs: list[Mapping[str, Any]] = list(load_records(open_source(references), template))
    names = [field.name for field in template.fields]
    if all(source.fields is not None for source in sources):
        pairs = _pairs_by_record(sources, pairs, names, references)
    elif len(sources) == len(pairs):
        _check_order(sources, pairs, names)
    else:
        raise UserError(
            f"{plural(len(sources), 'document')}, but {plural(len(pairs), 'pair')} in {references}, and the "
            "documents do not have their record ('input').",
            hint="Give the same number of both, in the same order.",
        )
    return [source.candidate(template, pair) for source, pair in zip(sources, pairs, strict=True)]


def _pairs_by_record(
    sources: Sequence[Source], pairs: Sequence[Mapping[str, Any]], names: Sequence[str], references: str
) -> list[Mapping[str, Any]]:
    """Returns the pair of each source: the one with the same record."""
    by_record = {_record_key(pair, names): pair for pair in pairs}
    matches = [by_record.get(_record_key(source.fields or {}, names)) for source in sources]
    unmatched = [source.origin for source, pair in zip(sources, matches, strict=True) if pair is None]
    if unmatched:
        raise UserError(
            f"{references}: has no pair for {len(unmatched)} of {plural(len(sources), 'document')}, whose 'input' is "
            f"not among its records:\n{listing(unmatched)}"
        )
    return [pair for pair in matches if pair is not None]


def _check_order(sources: Sequence[Source], pairs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for source, pair in zip(sources, pairs, strict=True):
        if source.fields is not None and _record_key(source.fields, names) != _record_key(pair, names):
            raise UserError(
                f"{source.origin}: was generated from another record than the one at its position ({pair['origin']}).",
                hint="Give all documents their 'input', or sort them like the references.",
            )


def _record_key(record: Mapping[str, Any], names: Sequence[str]) -> str:
    return json.dumps([record[name] for name in names])
