"""Records to documents, in Python::

    from typst_lit.inference.generator import Generator

    generator = Generator.load("runs/default")
    document = generator.generate_one({"starting_page": 1, ...})
    print(document.source, document.compiled)

The commands ``generate`` and ``serve`` are uses of this. Every document is compiled; if it does not compile,
it is mended where that is certain, or else generated again, up to so many attempts, of which the best is kept.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.data.encoding import Encoder
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.data.records import parse_record
from typst_lit.data.sources import FileSource
from typst_lit.errors import UserError, listing
from typst_lit.inference.attempts import Attempts, GeneratedDocument
from typst_lit.inference.decoder import Row
from typst_lit.inference.engine import Decoding, Engine, Job
from typst_lit.inference.outputs import JsonListFile
from typst_lit.inference.sampling import GenerationSettings
from typst_lit.model.adapters import (
    adapter_base,
    adapter_directory,
    adapter_key,
    adapter_template,
    check_adapter,
    load_adapter,
)
from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0


class Generator:
    """A loaded model that turns records into documents.

    Args:
        model: a causal language model in evaluation mode, with or without adapters; None where a decoder has its own.
        tokenizer: its tokenizer.
        templates: the prompt template of each adapter, by its name; that of None is for a model without one.
        settings: how to sample.
        typesetter: what compiles; None compiles nothing.
        attempts: how often a record is tried, until its document compiles.
        batch_size: documents at once.
        weights: which model and adapters these are, as plain values: a file of results is only gone on with if it was
            made with the same.
        decoder: what decodes, if not the built-in decoder.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | None,
        tokenizer: PreTrainedTokenizerBase,
        templates: Mapping[str | None, PromptTemplate] | None = None,
        settings: GenerationSettings | None = None,
        typesetter: Typesetter | None = None,
        attempts: int = 1,
        batch_size: int = 8,
        weights: Mapping[str, Any] | None = None,
        decoder: Decoding | None = None,
    ) -> None:
        self.weights = dict(weights or {})
        if attempts < 1:
            raise UserError(f"attempts must be 1 or more, not {attempts}.")
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, not {batch_size}.")
        self.settings = settings or GenerationSettings()
        self.typesetter = typesetter
        self.attempts = attempts
        self.templates: dict[str | None, PromptTemplate] = dict(templates) if templates else {None: ReportPrompt()}
        self.encoders = {name: Encoder(tokenizer, template) for name, template in self.templates.items()}
        self.engine = Engine(model, tokenizer, batch_size, decoder=decoder)

    @classmethod
    def load(
        cls,
        adapter: str | Path | Mapping[str, str | Path] | None = None,
        base_model: str | None = None,
        use_4bit: bool = True,
        merge: bool = False,
        compile: bool = True,
        typesetter: Typesetter | None = None,
        engine: str = "builtin",
        **options: Any,
    ) -> Generator:
        """Loads a model with its adapter, or with several.

        Args:
            adapter: directory of an adapter, or of a run; or several of them by name, the first being the usual one.
            base_model: hub name, folder, or a built-in name; by default what the adapter names.
            use_4bit: load the base model in 4 bits.
            merge: put the adapter's weights into the base model's, which needs use_4bit false and makes each step
                faster.
            compile: compile every document.
            typesetter: what compiles, if not the usual one.
            engine: what decodes: ``builtin`` or ``vllm``.
            options: those of `Generator`: settings, attempts, batch_size.

        Raises:
            UserError: when there is no such adapter or model, or they do not fit.
        """
        chosen = choose(adapter, base_model, use_4bit, merge, engine)
        if engine == "vllm":
            from typst_lit.inference.backends.vllm import load

            settings = options.get("settings") or GenerationSettings()
            loaded = load(chosen, use_4bit, settings, options.get("batch_size", 8))
        else:
            loaded = _load(chosen, use_4bit, merge)
        return cls(**loaded._asdict(), typesetter=(typesetter or Typesetter()) if compile else None, **options)

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters, the usual one first."""
        return [name for name in self.encoders if name is not None]

    def encoder(self, adapter: str | None = None) -> Encoder:
        """Returns what encodes records for an adapter; the usual one by default.

        Raises:
            UserError: when no adapter has this name.
        """
        return self.encoders[resolve_adapter(self.encoders, adapter)]

    def check(self, record: object, adapter: str | None = None) -> tuple[dict[str, Any], list[str]]:
        """Returns a record's fields and what is wrong with them. The record may also stand in ``{"input": ...}``."""
        parsed = parse_record(record, self.encoder(adapter).template.fields, needs_reference=False)
        return parsed.fields, list(parsed.errors)

    def attempt(self, fields: Mapping[str, Any], adapter: str | None = None, **changes: Any) -> Attempts:
        """Returns the tries at a checked record; ``changes`` are to the settings, or ``attempts``, or ``compile``."""
        encoder = self.encoder(adapter)
        (prompt,) = encoder.prompts([fields])
        return self._attempts(prompt, fields, str(fields[encoder.template.body_field]), changes)

    def attempt_prompt(self, prompt: str, adapter: str | None = None, **changes: Any) -> Attempts:
        """Returns the tries at a prompt that is already rendered; see `attempt`."""
        (ids,) = self.encoder(adapter).encode_texts([prompt])
        return self._attempts(ids, {}, "", changes)

    def _attempts(self, prompt: list[int], fields: Mapping[str, Any], text: str, changes: dict[str, Any]) -> Attempts:
        typesetter = self.typesetter if changes.pop("compile", True) else None
        most = changes.pop("attempts", self.attempts)
        return Attempts(prompt, fields, text, replace(self.settings, **changes), typesetter, most)

    def generate(
        self, records: Sequence[object], adapter: str | None = None
    ) -> Iterator[tuple[int, GeneratedDocument]]:
        """Generates a document a record, and yields each with its record's place as soon as it is done.

        Raises:
            UserError: when a record can't be used; all faults are listed before anything is generated.
        """
        checked = [self.check(record, adapter) for record in records]
        faults = [f"record {place}: {fault}" for place, (_, found) in enumerate(checked) for fault in found]
        if faults:
            raise UserError(f"{len(faults)} faults in {len(records)} records:\n{listing(faults)}")
        for place, answer in self.answers(records, adapter):
            if isinstance(answer, Exception):
                raise answer
            yield place, answer

    def answers(
        self, records: Sequence[object], adapter: str | None = None
    ) -> Iterator[tuple[int, GeneratedDocument | Exception]]:
        """Generates a document a record, and yields each, or what went wrong with it, with its record's place.

        While some are decoded, others are compiled. Where a step of the decoder fails, as for want of memory, those
        that it failed begin anew, half as many at once; a document that fails alone is answered with its error.
        """
        name = resolve_adapter(self.encoders, adapter)
        tries: dict[int, Attempts] = {}
        for place, record in enumerate(records):
            fields, faults = self.check(record, name)
            if faults:
                yield place, UserError("; ".join(faults))
            else:
                tries[place] = self.attempt(fields, name)
        under_way: dict[Job, int] = {}
        decoded: list[Job] = []
        judged: dict[Future[GeneratedDocument | None], int] = {}

        def submit(place: int, row: Row) -> None:
            job = Job(row, name, on_done=decoded.append)
            under_way[job] = place
            self.engine.submit(job)

        for place in sorted(tries, key=lambda place: -len(tries[place].prompt)):
            submit(place, tries[place].row())
        told, finished, batch_size = time.monotonic(), 0, self.engine.batch_size
        pool = ThreadPoolExecutor(self.typesetter.workers if self.typesetter else 1, "judging")
        try:
            while under_way or judged:
                company = self._step()
                while decoded:
                    job = decoded.pop()
                    place = under_way.pop(job)
                    crowd = company or self.engine.running + 1
                    if job.completion is not None:
                        judged[pool.submit(tries[place].judge, job.completion)] = place
                        continue
                    error = job.error or RuntimeError("the document was given up")
                    error.__traceback__ = None  # it would keep the tensors of the step
                    if crowd > 1 and not isinstance(error, UserError):
                        self.engine.batch_size = max(1, crowd // 2)
                        submit(place, Row(job.row.prompt, job.row.settings, job.row.seed))
                    else:
                        self.engine.batch_size = batch_size
                        finished += 1
                        yield place, error
                if judged and not under_way:
                    wait(judged, return_when=FIRST_COMPLETED)
                for future in [future for future in judged if future.done()]:
                    place = judged.pop(future)
                    document = future.result()
                    if document is None:
                        submit(place, tries[place].row())
                    else:
                        finished += 1
                        yield place, document
                if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    log.info("  %d of %d documents, %d tokens under way", finished, len(tries), self.engine.tokens)
        finally:
            self.engine.batch_size = batch_size
            for job in under_way:
                self.engine.cancel(job)
            pool.shutdown()

    def _step(self) -> int:
        """Decodes one step; returns how many documents failed with it."""
        try:
            self.engine.pump()
        except torch.AcceleratorError:
            raise  # the device does nothing more for this process
        except Exception as error:
            company = self.engine.running
            if company > 1:
                log.warning(
                    "Decoding %d documents at once failed (%s); they begin anew, fewer at once.", company, error
                )
            self.engine.fail(error)
            return company
        return 0

    def _making(self, adapter: str | None) -> dict[str, Any]:
        """Returns what documents depend on, beside their records."""
        template = self.encoder(adapter).template
        return making(self.weights, adapter, template, self.settings, self.attempts, self.typesetter is not None)

    def generate_one(self, record: object, adapter: str | None = None) -> GeneratedDocument:
        """Generates the document of one record."""
        ((_, document),) = self.generate([record], adapter)
        return document

    def generate_file(
        self,
        input_file: str | Path,
        output_file: str | Path,
        adapter: str | None = None,
        overwrite: bool = False,
    ) -> Iterator[tuple[int, GeneratedDocument]]:
        """Generates the documents of a file's records into a JSON list; yields each, with its place, once it is there.

        What the list has already of these records stays, unless it is to be overwritten; at the end it stands in the
        records' order.

        Raises:
            UserError: when a record can't be used, or the list was made otherwise; all is checked first.
        """
        records = read_records(input_file, self, adapter)
        file = JsonListFile(Path(output_file))
        way_out = "Name another output file, or overwrite it (--overwrite)."
        done = [] if overwrite else file.resume(self._making(adapter), way_out)
        results = {_key(result.get("input")): result for result in done if isinstance(result, dict)}
        if strange := results.keys() - {_key(record) for record in records}:
            raise UserError(f"{output_file}: holds {len(strange)} results of other records. {way_out}")
        file.begin(list(results.values()), self._making(adapter))
        places = {_key(record): place for place, record in reversed([*enumerate(records)])}
        missing = sorted(place for key, place in places.items() if key not in results)
        if results:
            log.info("%d of %d documents are there already.", len(places) - len(missing), len(places))
        for number, document in self.generate([records[place] for place in missing], adapter):
            results[_key(document.input)] = document.to_json()
            file.append([document.to_json()])
            yield missing[number], document
        file.write([results[_key(record)] for record in records])


def read_records(path: str | Path, generator: Generator, adapter: str | None = None) -> list[dict[str, Any]]:
    """Returns the fields of all records in a file: one, one in ``{"input": ...}``, a list or lines of such.

    Raises:
        UserError: naming the place of every fault.
    """
    found, faults = [], []
    for row in FileSource(str(path)).rows():
        fields, wrong = generator.check(row.value, adapter) if row.error is None else ({}, [row.error])
        found.append(fields)
        faults += [f"{row.origin}: {fault}" for fault in wrong]
    if faults or not found:
        raise UserError(f"{path}: {'records can not be used:' if faults else 'holds no record.'}\n{listing(faults)}")
    return found


def _key(record: object) -> str:
    return json.dumps(record, sort_keys=True, ensure_ascii=False)


def resolve_adapter(named: Mapping[str | None, Any], adapter: str | None) -> str | None:
    """Returns the name of an adapter among those there are, the first by default; None where there is none.

    Raises:
        UserError: when no adapter has this name.
    """
    name = adapter or next(iter(named))
    if name not in named:
        there = ", ".join(each for each in named if each is not None)
        raise UserError(f"there is no adapter '{name}'; there is: {there or 'none'}.")
    return name


def making(
    weights: Mapping[str, Any],
    adapter: str | None,
    template: PromptTemplate,
    settings: GenerationSettings,
    attempts: int,
    compiles: bool,
) -> dict[str, Any]:
    """Returns what documents depend on, beside their records, as plain values."""
    return {
        **weights,
        "adapter": adapter,
        "template": template.describe(),
        **{f"generation.{key}": value for key, value in asdict(settings).items()},
        "attempts": attempts,
        "compile": compiles,
    }


@dataclass(frozen=True)
class Choice:
    """Which model and adapters a `Generator` is to have; nothing of them is loaded yet.

    Attributes:
        base: the base model's name.
        directories: of the adapters, by name.
        templates: the prompt template of each adapter, by its name, or that of None.
        weights: all this as plain values, which change when the weights do.
    """

    base: str
    directories: dict[str, Path]
    templates: dict[str | None, PromptTemplate]
    weights: dict[str, Any]


def choose(
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    base_model: str | None = None,
    use_4bit: bool = True,
    merge: bool = False,
    engine: str = "builtin",
) -> Choice:
    """Finds the adapters and the base model that they are for; the arguments are those of `Generator.load`.

    Raises:
        UserError: when there is no such adapter, or no model is named.
    """
    adapters = adapter if isinstance(adapter, Mapping) else {} if adapter is None else {"default": adapter}
    directories = {name: adapter_directory(path) for name, path in adapters.items()}
    first = next(iter(directories.values()), None)
    base = base_model or (adapter_base(first) if first else None)
    if base is None:
        raise UserError(
            f"{first}: the adapter does not say which base model it was made for: name it with --base-model."
            if first
            else "there is neither an adapter nor a base model: name one with --model or --base-model."
        )
    if merge and (use_4bit or len(directories) != 1):
        raise UserError("merging needs one adapter and --no-4bit: 4-bit weights would lose what is added to them.")
    if merge and engine != "builtin":
        raise UserError(f"--merge is for the built-in engine; for {engine}, `typst-lit export --to merged` merges.")
    for path in directories.values():
        made_for = adapter_base(path)
        if made_for and made_for != base:
            log.warning("The adapter %s was made for %s; it is put on %s.", path, made_for, base)
    templates: dict[str | None, PromptTemplate] = {
        name: adapter_template(path) or ReportPrompt() for name, path in directories.items()
    }
    if merge:
        templates = {None: next(iter(templates.values()))}
    # that of None is for a base model that was trained whole, or merged
    templates = templates or {None: adapter_template(Path(base)) or ReportPrompt()}
    weights = {
        "base_model": base,
        "use_4bit": use_4bit,
        "merge": merge,
        "adapters": {name: adapter_key(path) for name, path in directories.items()},
        **({} if engine == "builtin" else {"engine": engine}),
    }
    return Choice(base, directories, templates, weights)


class Loaded(NamedTuple):
    """What a `Generator` is made of."""

    model: PreTrainedModel | PeftModel | None
    tokenizer: PreTrainedTokenizerBase
    templates: dict[str | None, PromptTemplate]
    weights: dict[str, Any]
    decoder: Decoding | None = None


def check_choice(chosen: Choice) -> PretrainedConfig:
    """Returns the base model's architecture, after a check that the adapters are whole and fit it.

    Raises:
        UserError: when there is no such model, or an adapter does not fit.
    """
    architecture = PretrainedBackbone().load_config(chosen.base, None, False)
    for path in chosen.directories.values():
        check_adapter(path, chosen.base, architecture)
    return architecture


def _load(chosen: Choice, use_4bit: bool, merge: bool) -> Loaded:
    check_choice(chosen)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = PretrainedBackbone()
    tokenizer = backbone.load_tokenizer(chosen.base, None, False)
    log.info("Loading %s%s ...", chosen.base, " in 4 bits" if use_4bit else "")
    model: Any = backbone.load_model(chosen.base, None, False, use_4bit, device)
    for name, path in chosen.directories.items():
        model = load_adapter(model, path, trainable=False, name=name)
    if merge:
        model = model.merge_and_unload()
    return Loaded(model.eval(), tokenizer, chosen.templates, chosen.weights)


# The three functions below are the ones that users of the usual inference script know.

_ABOUT: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()  # templates and weights of a loaded model


def load_model_and_tokenizer(
    base_model_name: str | None = None, adapter_path: str | Path | None = None, use_4bit: bool = True
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Loads a base model with its adapter, to be used for many records.

    Args:
        base_model_name: hub name, folder or built-in name; by default what the adapter names.
        adapter_path: directory of an adapter, or of a run; None for the base model alone.
        use_4bit: load the base model in 4 bits.

    Raises:
        UserError: when there is no such model or adapter, or they do not fit.
    """
    chosen = choose(adapter_path, base_model_name, use_4bit)
    loaded = _load(chosen, use_4bit, merge=False)
    assert loaded.model is not None
    _ABOUT[loaded.model] = {"templates": loaded.templates, "weights": loaded.weights}
    return loaded.model, loaded.tokenizer


def inference_from_dict(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, input_data: Mapping[str, Any]
) -> str:
    """Returns the Typst source of one record, sampled as `GenerationSettings` says by default and not compiled.

    Args:
        model: what `load_model_and_tokenizer` returned.
        tokenizer: likewise.
        input_data: the record's fields, or ``{"input": {...}}``.

    Raises:
        UserError: naming each field that is wrong.
    """
    return Generator(model, tokenizer, **_ABOUT.get(model, {})).generate_one(dict(input_data)).source


def inference_from_json_file(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    input_file: str | Path,
    output_file: str | Path,
) -> list[dict[str, Any]]:
    """Writes ``[{"input": {...}, "generated_output": "...", ...}]`` for a file of records, and returns it.

    Args:
        model: what `load_model_and_tokenizer` returned.
        tokenizer: likewise.
        input_file: one record, ``{"input": {...}}``, or a list of such.
        output_file: the JSON list; what it has already of these records stays.
    """
    with Typesetter() as typesetter:
        generator = Generator(model, tokenizer, typesetter=typesetter, **_ABOUT.get(model, {}))
        for _ in generator.generate_file(input_file, output_file):
            pass
    return json.loads(Path(output_file).read_text("utf-8"))
