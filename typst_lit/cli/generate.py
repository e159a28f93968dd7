"""``typst-lit generate``: records to Typst and PDF, with the flags that users of the usual inference scripts know."""

from __future__ import annotations

import logging
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from typst_lit.cli.model_arguments import ModelArguments
from typst_lit.cli.parser import Command
from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.sources import SUFFIXES, FileSource
from typst_lit.errors import UserError, plural
from typst_lit.files import atomic_write, is_stream
from typst_lit.inference.model_spec import provenance
from typst_lit.inference.outputs import RecordResults, check_documents, write_document
from typst_lit.inference.records import InputRecord, read_records
from typst_lit.inference.settings import GenerationSettings
from typst_lit.inference.summary import DocumentCounts, log_document
from typst_lit.manifest import check_separate, write_output
from typst_lit.typesetting.typesetter import Typesetter

# To mypy the same as TYPE_CHECKING, whose imports jsonargparse would execute: transformers takes seconds.
MYPY = False
if MYPY:
    from typst_lit.inference.attempts import GeneratedDocument
    from typst_lit.inference.generator import Generator

log = logging.getLogger(__name__)
STANDARD_INPUT = "standard input"


@Command
def generate(
    *,
    input: str,
    output: str | None = None,
    typ_dir: str | None = None,
    pdf: bool = False,
    overwrite: bool = False,
    on_invalid: Literal["error", "skip"] = "error",
    model: ModelArguments,
    adapter: str | None = None,
    generation: GenerationSettings,
    typesetting: partial[Typesetter],
    engine: Literal["builtin", "ray", "vllm"] = "builtin",
    shard_size: int = 1000,
    actors: int | None = None,
    ray_address: str | None = None,
) -> None:
    """Generate Typst documents from records, compile and repair them, and compare them with their records.

    Args:
        input: A JSON file with a record, {"input": {...}}, or a list; - reads standard input. With --engine ray also
            JSON lines and Parquet, or a directory of all these.
        output: The JSON list to write, document by document; a list that is there is resumed. Without it or with -,
            the list is printed. With --engine ray, a directory of shards and their manifest.
        typ_dir: Also write each document as a .typ file into this directory.
        pdf: Also write each document as a PDF, next to its .typ file.
        overwrite: Start again from scratch where results exist, and replace files of other programs.
        on_invalid: What to do about invalid records. error: report all of them, and generate nothing. skip: leave them
            out; each has its errors as its result. With --engine ray, they are always skipped.
        model: Which model generates.
        adapter: The name of the adapter to use, if several are loaded.
        generation: How it is sampled.
        typesetting: The limits of each document.
        engine: ray: the built-in engine on every device of a Ray cluster. vllm: vLLM on this machine's GPU.
        shard_size: With --engine ray, the number of records per shard.
        actors: With --engine ray, the number of models; by default one per GPU, or without GPUs one per node.
        ray_address: With --engine ray, the cluster; by default one that runs on this machine, or is started on it.
    """
    model.validate()
    if engine == "ray":
        files = {"pdf": pdf, "typ_dir": typ_dir}
        for setting in (name for name, value in files.items() if value):
            raise UserError("`engine=ray` writes shards of JSON lines only.", setting=setting)
        load = partial(_load_in_actor, model, generation, typesetting)
        _generate_on_ray(load, input, output, model, adapter, generation, overwrite, shard_size, actors, ray_address)
        return
    if pdf and not model.compile:
        raise UserError("needs compiled documents.", setting="pdf", hint="Leave `compile=false` out.")
    stream = output if output and is_stream(output) else None if output else "-"
    if output and not stream:
        if Path(output).suffix != ".json":
            raise UserError(f"must be a .json file, not {output}.", setting="output")
        check_separate(output, [input])
    spec = model.resolve(engine)
    records = _read_records(input, spec.template(adapter), on_invalid == "skip")
    fields = [record.fields for record in records]
    sampling = spec.settings(generation, adapter)
    settings = provenance(spec.identity, adapter, spec.template(adapter), sampling, model.attempts, model.compile)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "documents.json" if stream else Path(output or "")
        directory = Path(typ_dir) if typ_dir else Path() if stream else path.parent
        with RecordResults(path, fields, settings, overwrite) as results, typesetting() as typesetter:
            writer = _DocumentWriter(directory if typ_dir or pdf else None, pdf, overwrite, DocumentCounts())
            if writer.directory:
                check_documents(directory, fields, results.missing, pdf, overwrite)
            generator = model.load(generation, typesetter, spec)
            generator.write_results(records, results, adapter, writer.write)
        if not stream:
            files_written = f", as files in {directory}" if writer.directory else ""
            log.info("%s in %s%s.", plural(writer.counts.documents, "document"), output, files_written)
        writer.counts.log_summary(model.attempts, sampling.temperature)
        if stream:
            write_output(stream, path.read_bytes())


def _read_records(path: str, template: PromptTemplate, skip_invalid: bool) -> list[InputRecord]:
    """Reads and validates the records of a file or of standard input."""
    if path != "-":
        FileSource(path).files()  # raises for a path that does not exist
        return read_records(path, template, skip_invalid)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{STANDARD_INPUT}.json"
        atomic_write(file, sys.stdin.buffer.read())
        try:
            return read_records(file, template, skip_invalid)
        except UserError as error:
            raise UserError(str(error).replace(str(file), STANDARD_INPUT)) from error


@dataclass
class _DocumentWriter:
    """Logs each document, and writes it as files.

    Attributes:
        directory: for the files; None writes none.
        pdf: whether to write PDFs too.
        overwrite: whether to replace files of the user.
        counts: of the documents so far.
    """

    directory: Path | None
    pdf: bool
    overwrite: bool
    counts: DocumentCounts

    def write(self, document: GeneratedDocument) -> None:
        self.counts.add(document)
        log_document(document)
        if self.directory:
            write_document(document, self.directory, self.pdf, self.overwrite)


def _generate_on_ray(
    load: partial[Generator],
    input: str,
    output: str | None,
    model: ModelArguments,
    adapter: str | None,
    generation: GenerationSettings,
    overwrite: bool,
    shard_size: int,
    actors: int | None,
    ray_address: str | None,
) -> None:
    from typst_lit.inference.backends.ray import generate_on_ray
    from typst_lit.inference.loading import validate_model
    from typst_lit.inference.shards import ShardDirectory

    if not output or Path(output).suffix.lower() in SUFFIXES or Path(output).is_file():
        raise UserError("`engine=ray` writes a directory of shards.", setting="output", hint="Name a directory.")
    source = FileSource(input)
    source.files()
    check_separate(output, [input])
    shards = ShardDirectory(Path(output).absolute(), shard_size)
    shards.check()
    spec = model.resolve()
    validate_model(spec)
    sampling = spec.settings(generation, adapter)
    settings = provenance(spec.identity, adapter, spec.template(adapter), sampling, model.attempts, model.compile)
    generate_on_ray(load, source, shards, settings, adapter, overwrite, ray_address, actors)
    count, failed = shards.total("records"), shards.total("failed")
    log.info("%s in %s in %s.", plural(count, "record"), plural(len(shards.shards), "shard"), output)
    if failed:
        log.warning("%d of %s have no document; the reason of each is its 'error'.", failed, plural(count, "record"))
    counts = {name: shards.total(name) for name in ("not_compiled", "clean", "not_clean")}
    DocumentCounts(count - failed, **counts).log_summary(model.attempts, sampling.temperature)


def _load_in_actor(
    model: ModelArguments, generation: GenerationSettings, typesetting: partial[Typesetter]
) -> Generator:
    """Loads the generator in another process; its arguments can be sent there, as a typesetter can't."""
    return model.load(generation, typesetting())
