"""``typst-lit generate``: records to Typst and PDF, with the flags that users of the usual inference script know."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from typst_lit.cli.parser import CommandParser
from typst_lit.data.sources import SUFFIXES
from typst_lit.errors import UserError
from typst_lit.inference.outputs import write_document
from typst_lit.typesetting.typesetter import Typesetter

if TYPE_CHECKING:
    from typst_lit.inference.attempts import GeneratedDocument
    from typst_lit.inference.generator import Generator
    from typst_lit.inference.sampling import GenerationSettings

log = logging.getLogger(__name__)


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit generate", description=run.__doc__)
    made.add_argument(
        "--input",
        type=str,
        required=True,
        help='A JSON file: one record, {"input": {...}}, or a list; - reads standard input. With --engine ray also '
        "JSON lines and Parquet, or a folder of all these.",
    )
    made.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="The JSON list to write, document by document; it goes on where it stopped. Without it, prints the list. "
        "With --engine ray, a folder of shards and their manifest.",
    )
    made.add_argument(
        "--engine",
        type=Literal["builtin", "ray", "vllm"],
        default="builtin",
        help="ray: the built-in engine on every device of a Ray cluster. vllm: vLLM on this machine's GPU.",
    )
    made.add_argument("--shard-size", type=int, default=1000, help="With --engine ray: records a file.")
    made.add_argument(
        "--actors", type=int | None, default=None, help="With --engine ray: models; by default one a GPU, else a node."
    )
    made.add_argument(
        "--ray-address",
        type=str | None,
        default=None,
        help="With --engine ray: the cluster's; by default one that runs on this machine, or is started on it.",
    )
    made.add_argument(
        "--overwrite", action=ActionYesNo(no_prefix="no-"), default=False, help="Start anew where results are already."
    )
    add_model_arguments(made)
    made.add_argument("--adapter", type=str | None, default=None, help="Which adapter, where several are loaded.")
    made.add_argument("--typ-dir", type=str | None, default=None, help="Writes each document as a .typ file there.")
    made.add_argument(
        "--pdf", action=ActionYesNo(no_prefix="no-"), default=False, help="Writes PDFs beside the .typ files."
    )
    return made


def add_model_arguments(made: ArgumentParser) -> None:
    """Adds what every command that generates needs: which model, and how it answers."""
    made.add_argument(
        "--model",
        type=str,
        default=[],
        nargs="*",
        help="The adapter's directory, or a run's. Several as name=directory, the first being the usual one.",
    )
    made.add_argument("--base-model", type=str | None, default=None, help="By default what the adapter names.")
    made.add_argument("--4bit", dest="use_4bit", action=ActionYesNo(no_prefix="no-"), default=True, help="NF4 weights.")
    made.add_argument(
        "--merge",
        action=ActionYesNo(no_prefix="no-"),
        default=False,
        help="Puts the adapter into the base model: faster, with --no-4bit.",
    )
    made.add_argument("--max-tokens", type=int, default=2048, help="Most tokens of a document.")
    made.add_argument("--temperature", type=float, default=0.7, help="0.1 to 0.3 keeps to the format; 0 is greedy.")
    made.add_argument("--top-p", type=float, default=0.95, help="Sample among the likeliest, up to this probability.")
    made.add_argument("--top-k", type=int, default=50, help="Sample among so many likeliest tokens; 0 for all.")
    made.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.1,
        help="Above 1, repeats become less likely; words of the record do not count.",
    )
    made.add_argument("--seed", type=int, default=0, help="Makes sampling repeatable.")
    made.add_argument("--attempts", type=int, default=1, help="Tries for a document that compiles.")
    made.add_argument("--batch-size", type=int, default=8, help="Documents at once.")
    made.add_argument(
        "--compile", action=ActionYesNo(no_prefix="no-"), default=True, help="Compile, and mend what almost compiles."
    )
    made.add_class_arguments(Typesetter, "typesetting")


def check(config: Namespace) -> tuple[dict[str, str], GenerationSettings]:
    """Returns adapters by name, and how to sample, of the arguments that `add_model_arguments` describes.

    Raises:
        UserError: when a value is out of range, or an adapter is not there.
    """
    from typst_lit.inference.sampling import GenerationSettings
    from typst_lit.model.adapters import adapter_directory

    settings = GenerationSettings(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    )
    for name in ("attempts", "batch_size"):
        if config[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, not {config[name]}.")
    named = [each.split("=", 1) if "=" in each else ["default", each] for each in config.model]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise UserError("--model: several adapters need a name each: --model reports=DIRECTORY letters=DIRECTORY.")
    for _, path in named:
        adapter_directory(path)
    return dict(named), settings


def load(config: Namespace, engine: str = "builtin") -> Generator:
    """Returns the generator that the arguments describe, after `check`."""
    adapters, settings = check(config)
    from typst_lit.inference.generator import Generator

    return Generator.load(
        adapters or None,
        config.base_model,
        config.use_4bit,
        config.merge,
        settings=settings,
        max_attempts=config.attempts,
        batch_size=config.batch_size,
        typesetter=config.typesetting,
        compile=config.compile,
        engine=engine,
    )


def run(args: Sequence[str]) -> None:
    """Turns records into Typst documents, compiles them, and mends those that almost compile."""
    made = parser()
    plain = made.parse_args(list(args))
    config = made.instantiate_classes(plain)
    if config.engine == "ray":
        _generate_on_ray(plain)
        return
    if config.pdf and not config.compile:
        raise UserError("--pdf needs the documents compiled: leave --no-compile out.")
    if config.output and Path(config.output).suffix != ".json":
        raise UserError(f"--output must be a .json file, not {config.output}.")
    with tempfile.TemporaryDirectory() as scratch, config.typesetting:
        source = Path(config.input)
        if config.input == "-":
            source = Path(scratch) / "standard input.json"  # an error names it by its stem
            source.write_bytes(sys.stdin.buffer.read())
        elif not source.is_file():
            raise UserError(f"--input {source}: there is no such file.")
        output = Path(config.output) if config.output else Path(scratch) / "documents.json"
        try:
            _generate(load(config, config.engine), source, output, config)
        except UserError as error:
            raise UserError(str(error).replace(str(source), source.stem)) if config.input == "-" else error from error
        if not config.output:
            print(output.read_text("utf-8"), end="")


def _generate(generator: Generator, source: Path, output: Path, config: Namespace) -> None:
    folder = Path(config.typ_dir) if config.typ_dir else output.parent if config.output else Path()
    writes = config.typ_dir is not None or config.pdf
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    count = failed = 0

    def write(document: GeneratedDocument) -> None:
        nonlocal count, failed
        count += 1
        failed += document.compiled is False
        log.info("%s", _line(document.index, document))
        if writes:
            write_document(document, folder, config.pdf)

    generator.generate_file(source, output, config.adapter, config.overwrite, write)
    if config.output:
        log.info("%d documents in %s%s.", count, output, f", as files in {folder}" if writes else "")
    _tell_of_failed(failed, count)


def _generate_on_ray(plain: Namespace) -> None:
    for flag, given in (("--pdf", plain.pdf), ("--typ-dir", plain.typ_dir)):
        if given:
            raise UserError(f"{flag}: --engine ray writes shards of JSON lines only.")
    if not plain.output or Path(plain.output).suffix.lower() in SUFFIXES or Path(plain.output).is_file():
        raise UserError("--engine ray writes a folder of shards: name one with --output.")
    from typst_lit.data.sources import FileSource
    from typst_lit.inference.backends.ray import generate_on_ray
    from typst_lit.inference.loading import provenance, resolve_model, validate_model
    from typst_lit.inference.shards import ShardDirectory

    source = FileSource(plain.input)
    source.files()
    adapters, settings = check(plain)
    spec = resolve_model(adapters, plain.base_model, plain.use_4bit, plain.merge)
    validate_model(spec)
    template = spec.template(plain.adapter)
    directory = ShardDirectory(Path(plain.output).absolute(), plain.shard_size)
    generate_on_ray(
        partial(load_plain, plain),
        source,
        directory,
        provenance(spec.identity, plain.adapter, template, settings, plain.attempts, plain.compile),
        plain.adapter,
        plain.overwrite,
        plain.ray_address,
        plain.actors,
    )
    count, failed = directory.total("records"), directory.total("failed")
    log.info("%d records in %d shards in %s.", count, len(directory.shards), plain.output)
    if failed:
        log.warning("%d of %d records have no document: each says why (error).", failed, count)
    _tell_of_failed(directory.total("not_compiled"), count - failed)


def load_plain(plain: Namespace) -> Generator:
    """Returns the generator of arguments as they were parsed: in another process, where objects can't be sent."""
    return load(parser().instantiate_classes(plain))


def _tell_of_failed(failed: int, count: int) -> None:
    if failed:
        log.warning("%d of %d documents do not compile.", failed, count)
        log.warning("Try --attempts 3, a lower --temperature, or train longer.")


def _line(place: int, document: GeneratedDocument) -> str:
    parts = [f"{document.tokens} tokens", f"{document.seconds:.1f} s"]
    if document.attempts > 1:
        parts.append(f"{document.attempts} attempts")
    if document.finish_reason == "length":
        parts.append("cut off at the token limit: raise --max-tokens")
    if document.result is not None:
        pages = document.result.page_count
        parts.append(f"{pages} page{'s' * (pages != 1)}" if document.compiled else document.result.error)
        parts += [f"mended: {repair}" for repair in document.repairs]
    return f"record {place}: {', '.join(parts)}"
