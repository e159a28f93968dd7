"""From records to documents: what the commands ``generate`` and ``serve``, evaluation and ``predict`` use.

Every document is compiled, repaired where that is necessary and certain, and compared with its record. If it is not
clean, it may be generated again; the best attempt counts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as GeneratorIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from typst_lit.contract.text_contract import TextContract
from typst_lit.data.encoding import Encoder
from typst_lit.data.prompts import PromptTemplate, ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.attempts import Attempts, DocumentTask, GeneratedDocument
from typst_lit.inference.constraints import OutputConstraint
from typst_lit.inference.decoder import BaseDecoder, Decoder, eos_token_ids
from typst_lit.inference.engine import Engine
from typst_lit.inference.loading import load_model
from typst_lit.inference.model_spec import ModelSpec, provenance, resolve_adapter, resolve_model
from typst_lit.inference.outputs import RecordResults
from typst_lit.inference.records import InputRecord, read_records, validate_record, validate_records
from typst_lit.inference.settings import DEFAULT_BATCH_SIZE, GenerationSettings
from typst_lit.progress import Every
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationFailure:
    """A record that has no document.

    Attributes:
        index: which of the records it is.
        error: why; a `UserError` when the record is invalid or too long.
        origin: where the record came from.

    Example:
        >>> failure = GenerationFailure(3, UserError("field 'department' is missing"), "records.json, record 3")
        >>> print(f"{failure.origin}: {failure.error}")
        records.json, record 3: field 'department' is missing
    """

    index: int
    error: Exception
    origin: str = ""


class Generator:
    """A loaded model that turns records into documents.

    Args:
        model: a causal language model in evaluation mode, with or without adapters; or the decoder of a backend that
            holds its own.
        tokenizer: its tokenizer.
        templates: the prompt template of each adapter, by its name; that of None is for a model without adapters.
        settings: how to sample; what they do not give is that of each adapter.
        typesetter: what compiles; None compiles nothing.
        max_attempts: maximum number of attempts at a document, until it is clean; see `Attempts`.
        batch_size: documents that are decoded at the same time.
        identity: which model and adapters these are, as plain values: generation into a file of results is only resumed
            with the same.
        contracts: the text contract of each adapter, by its name; None where it is not known.
        adapter_settings: the generation settings that each adapter brings, by its name.

    Example:
        >>> generator = Generator.load(base_model="typst-nano", use_4bit=False)
        >>> generator.settings = GenerationSettings(max_tokens=4, temperature=0)
        >>> fields = {"starting_page": 1, "academic_year": "2025-26", "department": "Physics"}
        >>> document = generator.generate_one({**fields, "project_title": "Rain", "contents_txt": "It rains."})
        >>> document.tokens, document.finish_reason
        (4, 'length')
    """

    def __init__(
        self,
        model: PreTrainedModel | BaseDecoder,
        tokenizer: PreTrainedTokenizerBase,
        templates: Mapping[str | None, PromptTemplate] | None = None,
        settings: GenerationSettings | None = None,
        typesetter: Typesetter | None = None,
        max_attempts: int = 1,
        batch_size: int = DEFAULT_BATCH_SIZE,
        identity: Mapping[str, Any] | None = None,
        contracts: Mapping[str | None, TextContract | None] | None = None,
        adapter_settings: Mapping[str | None, GenerationSettings] | None = None,
    ) -> None:
        for name, value in (("max_attempts", max_attempts), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"must be 1 or more, not {value}.", setting=name)
        self.typesetter = typesetter
        self.max_attempts = max_attempts
        self.identity = dict(identity or {})
        self.templates: dict[str | None, PromptTemplate] = dict(templates) if templates else {None: ReportPrompt()}
        self.adapter_settings = dict(adapter_settings or {})
        self.settings = settings or GenerationSettings()
        self.contracts = {name: (contracts or {}).get(name) for name in self.templates}
        self.encoders = {name: Encoder(tokenizer, template) for name, template in self.templates.items()}
        if not isinstance(model, BaseDecoder):
            constraint = OutputConstraint(tokenizer)
            model = Decoder(model, eos_token_ids(model.generation_config, tokenizer), constraint=constraint)
        self.engine = Engine(model, tokenizer, batch_size)
        self._compilers = ThreadPoolExecutor(typesetter.workers if typesetter else 1, "compiling")

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
        settings: GenerationSettings | None = None,
        max_attempts: int = 1,
        batch_size: int = DEFAULT_BATCH_SIZE,
        trust_template: str | None = None,
    ) -> Generator:
        """Loads a model with its adapter, or with several.

        Args:
            adapter: directory of an adapter, or of a run; or several of them by name, the first being the default.
            base_model: hub name, directory, or a built-in name; by default what the adapter names.
            use_4bit: load the base model in 4 bits.
            merge: merge the adapter into the base model, which needs use_4bit false and makes each step faster.
            compile: compile every document.
            typesetter: what compiles, if not the default one.
            engine: what decodes: ``builtin`` or ``vllm``.
            settings: how to sample.
            max_attempts: maximum number of attempts at a document, until it is clean; see `Attempts`.
            batch_size: documents that are decoded at the same time.
            trust_template: class path of a prompt template whose module may be imported for the adapter. The templates
                of this package, of plugins, and of modules that were imported before need no trust.

        Raises:
            UserError: when an adapter or model does not exist, or they do not fit.
        """
        spec = resolve_model(adapter, base_model, use_4bit, merge, engine, trust_template)
        return cls.from_spec(
            spec, settings, (typesetter or Typesetter()) if compile else None, max_attempts, batch_size
        )

    @classmethod
    def from_spec(
        cls,
        spec: ModelSpec,
        settings: GenerationSettings | None = None,
        typesetter: Typesetter | None = None,
        max_attempts: int = 1,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Generator:
        """Loads the model that `typst_lit.inference.loading.resolve_model` returned; see the class for the arguments.

        Between the two calls, records can be validated: a model takes long to load.

        Raises:
            UserError: when the base model does not exist, or an adapter does not fit.
        """
        if spec.engine == "vllm":
            from typst_lit.inference.backends.vllm import load

            loaded = load(spec, settings or GenerationSettings(), batch_size)
        else:
            loaded = load_model(spec)
        return cls(
            loaded.model,
            loaded.tokenizer,
            loaded.templates,
            settings,
            typesetter,
            max_attempts,
            batch_size,
            loaded.identity,
            loaded.contracts,
            loaded.adapter_settings,
        )

    @property
    def model(self) -> PreTrainedModel:
        """The model that decodes.

        Raises:
            TypeError: when a backend holds it, such as vLLM.
        """
        if isinstance(self.engine.decoder, Decoder):
            return self.engine.decoder.model
        raise TypeError(f"the model is held by {type(self.engine.decoder).__name__}")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.engine.tokenizer

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters, the default one first."""
        return [name for name in self.encoders if name is not None]

    @property
    def settings(self) -> GenerationSettings:
        """How documents of the default adapter are sampled; what is assigned is how those of all adapters are."""
        return self.settings_for()

    @settings.setter
    def settings(self, settings: GenerationSettings) -> None:
        self._settings = settings

    def settings_for(
        self, adapter: str | None = None, settings: GenerationSettings | None = None
    ) -> GenerationSettings:
        """Returns how documents of an adapter are sampled: ``settings``, then the generator's, then the adapter's own.

        Args:
            adapter: its name; by default the default one.
            settings: those of one document.

        Raises:
            UserError: when no adapter has this name.
        """
        own_settings = self.adapter_settings.get(resolve_adapter(self.templates, adapter), GenerationSettings())
        return (settings or GenerationSettings()).with_defaults(self._settings).with_defaults(own_settings)

    def encoder(self, adapter: str | None = None) -> Encoder:
        """Returns what encodes records for an adapter, by default for the default one.

        Raises:
            UserError: when no adapter has this name.
        """
        return self.encoders[resolve_adapter(self.encoders, adapter)]

    def provenance(self, adapter: str | None = None) -> dict[str, Any]:
        """Returns what documents depend on in addition to their records, as plain values."""
        template = self.encoder(adapter).template
        return provenance(
            self.identity, adapter, template, self.settings_for(adapter), self.max_attempts, self.typesetter is not None
        )

    # One document

    def check(self, record: object, adapter: str | None = None) -> tuple[dict[str, Any], list[str]]:
        """Returns a record's fields and what is wrong with them. The record may also be in ``{"input": ...}``."""
        return validate_record(record, self.encoder(adapter).template)

    def attempts(
        self,
        fields: Mapping[str, Any],
        adapter: str | None = None,
        settings: GenerationSettings | None = None,
        max_attempts: int | None = None,
        compile: bool = True,
    ) -> Attempts:
        """Returns the attempts at a validated record's document, for `submit`.

        Args:
            fields: the record's.
            adapter: which adapter to use; by default the default one.
            settings: how to sample, where not as the generator's other documents.
            max_attempts: how many there may be, likewise.
            compile: compile the document, if the generator has a typesetter.
        """
        encoder = self.encoder(adapter)
        (prompt,) = encoder.prompts([fields])
        return self._attempts(prompt, fields, encoder.template.body_field, adapter, settings, max_attempts, compile)

    def attempts_at_prompt(
        self,
        prompt: str,
        adapter: str | None = None,
        settings: GenerationSettings | None = None,
        max_attempts: int | None = None,
        compile: bool = True,
    ) -> Attempts:
        """Returns the attempts at a prompt that is already rendered; see `attempts`."""
        (ids,) = self.encoder(adapter).encode_texts([prompt])
        return self._attempts(ids, {}, "", adapter, settings, max_attempts, compile)

    def _attempts(
        self,
        prompt: Sequence[int],
        fields: Mapping[str, Any],
        body_field: str,
        adapter: str | None,
        settings: GenerationSettings | None,
        max_attempts: int | None,
        compile: bool,
    ) -> Attempts:
        name = resolve_adapter(self.encoders, adapter)
        return Attempts(
            prompt,
            fields,
            body_field,
            self.settings_for(adapter, settings),
            self.typesetter if compile else None,
            max_attempts or self.max_attempts,
            name,
            self.contracts[name],
        )

    def submit(self, attempts: Attempts, on_text: Callable[[str], None] | None = None) -> Future[GeneratedDocument]:
        """Starts on a document: generates it, compiles it, and attempts it again while that is worth it.

        May be called from any thread; some thread must be in the engine's `run`. Cancelling the future cancels the
        document.

        Args:
            attempts: what `attempts` returned.
            on_text: called in the engine's thread with all of the source so far, whenever there is more of it.
        """
        return DocumentTask(self.engine, self._compilers, attempts, on_text).future

    # Many documents

    def generate(self, records: Sequence[object], adapter: str | None = None) -> Iterator[GeneratedDocument]:
        """Generates one document per record, and yields each as soon as it is done; its ``index`` names the record.

        Args:
            records: each as its fields, as ``{"input": fields}``, or as an `InputRecord`.
            adapter: which adapter to use; by default the default one.

        Raises:
            UserError: when records are invalid; all errors are listed before anything is generated.
        """
        validated = validate_records(records, self.encoder(adapter).template)
        return self._documents(validated, adapter)

    def _documents(
        self, records: Sequence[InputRecord], adapter: str | None
    ) -> GeneratorIterator[GeneratedDocument, None, None]:
        with closing(self._run([*enumerate(records)], adapter)) as results:  # an error must not leave others running
            for result in results:
                if isinstance(result, GenerationFailure):
                    raise result.error
                yield result

    def results(
        self, records: Sequence[object], adapter: str | None = None
    ) -> Iterator[GeneratedDocument | GenerationFailure]:
        """Generates one document per record, and yields each, or why there is none, as soon as it is done.

        While some are decoded, others are compiled. See `generate` for the arguments.
        """
        template = self.encoder(adapter).template
        valid: list[tuple[int, InputRecord]] = []
        for index, record in enumerate(records):
            if isinstance(record, InputRecord):
                valid.append((index, record))
                continue
            fields, errors = validate_record(record, template)
            if errors:
                yield GenerationFailure(index, UserError("; ".join(errors)))
            else:
                valid.append((index, InputRecord(fields)))
        yield from self._run(valid, adapter)

    def _run(
        self, records: Sequence[tuple[int, InputRecord]], adapter: str | None
    ) -> GeneratorIterator[GeneratedDocument | GenerationFailure, None, None]:
        pending: dict[Future[GeneratedDocument], tuple[int, InputRecord, DocumentTask]] = {}
        done: deque[Future[GeneratedDocument]] = deque()
        log_due = Every()

        def collect(future: Future[GeneratedDocument]) -> None:
            done.append(future)
            self.engine.wake()

        def is_any_done() -> bool:
            if log_due():
                num_finished = len(records) - len(pending)
                log.info(
                    "  %d of %d documents, %d tokens in progress", num_finished, len(records), self.engine.num_tokens
                )
            return bool(done)

        attempts = {index: self.attempts(record.fields, adapter) for index, record in records}
        try:
            for index, record in sorted(records, key=lambda item: -len(attempts[item[0]].prompt)):  # longest first
                task = DocumentTask(self.engine, self._compilers, attempts.pop(index))
                pending[task.future] = index, record, task
                task.future.add_done_callback(collect)
            while pending:
                self.engine.run(until=is_any_done)
                while done:
                    future = done.popleft()
                    index, record, _ = pending.pop(future)
                    error = future.exception()
                    if error is None:
                        yield replace(future.result(), index=index, origin=record.origin)
                    else:
                        yield GenerationFailure(index, error, record.origin)  # type: ignore[arg-type]
        finally:
            for _, _, task in pending.values():
                task.cancel()

    def generate_one(self, record: object, adapter: str | None = None) -> GeneratedDocument:
        """Generates the document of one record; see `generate`."""
        (document,) = self.generate([record], adapter)
        return document

    # Files

    def generate_file(
        self,
        input_file: str | Path,
        output_file: str | Path,
        adapter: str | None = None,
        overwrite: bool = False,
        on_document: Callable[[GeneratedDocument], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Generates the documents of a file's records into a JSON list; see `write_documents`.

        Raises:
            UserError: when records are invalid, or when `write_documents` refuses the file; before anything is
                generated.
        """
        records = read_records(input_file, self.encoder(adapter).template)
        return self.write_documents(records, output_file, adapter, overwrite, on_document)

    def write_documents(
        self,
        records: Sequence[InputRecord],
        output_file: str | Path,
        adapter: str | None = None,
        overwrite: bool = False,
        on_document: Callable[[GeneratedDocument], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Generates documents into a JSON list.

        The file is a valid list after every document. Results of these records that it already has are retained, unless
        it is to be overwritten. At the end it is in the records' order.

        Args:
            records: what `read_records` returned.
            output_file: the JSON list.
            adapter: which adapter to use; by default the default one.
            overwrite: start again where results exist.
            on_document: called with each new document, before it is added to the file.

        Returns:
            The results of all records, in their order.

        Raises:
            UserError: when another process writes the file, when it belongs to the user, or when it has results of
                other records or with different settings; before anything is generated.
        """
        fields = [record.fields for record in records]
        with RecordResults(output_file, fields, self.provenance(adapter), overwrite) as results:
            return self.write_results(records, results, adapter, on_document)

    def write_results(
        self,
        records: Sequence[InputRecord],
        results: RecordResults,
        adapter: str | None = None,
        on_document: Callable[[GeneratedDocument], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Generates the documents that results lack; see `write_documents`.

        Args:
            records: what `read_records` returned.
            results: those of the same records, with the provenance of this generator.
            adapter: which adapter to use; by default the default one.
            on_document: called with each new document, before it is added to the results.

        Returns:
            The results of all records, in their order.
        """
        results.start()
        for index in results.missing:
            if records[index].errors:
                results.add(index, {"input": records[index].fields, "error": "; ".join(records[index].errors)})
        valid = [index for index in results.missing if not records[index].errors]
        with closing(self._documents([records[index] for index in valid], adapter)) as documents:
            for document in documents:
                document = replace(document, index=valid[document.index])
                if on_document:  # before `add`: of a result that is in the file, all other files exist as well
                    on_document(document)
                results.add(document.index, document.to_json())
        return results.finish()
