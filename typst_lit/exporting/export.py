"""Exports of a trained model for other engines: written, then loaded again and compared with the original."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from typst_lit.exporting.comparison import Comparison, compare_models, load_pairs
from typst_lit.exporting.gguf import GgufType, pretokenizer_name, read_gguf, write_gguf
from typst_lit.exporting.merging import write_merged
from typst_lit.exporting.targets import modelfile, read_test_scores, vllm_commands, write_hub_directory
from typst_lit.files import atomic_write
from typst_lit.inference.generator import Generator
from typst_lit.manifest import check_export, check_separate, export_directory
from typst_lit.model.adapters import merge_adapter, plain_lora_rank
from typst_lit.model.backbones import loads_in_other_engines
from typst_lit.model.locations import adapter_base, adapter_directory, adapter_metadata, model_directory
from typst_lit.typesetting.typesetter import Typesetter

Dtype = Literal["bfloat16", "float16", "float32"]
GGUF_FILE = "model.gguf"


@dataclass(frozen=True)
class TrainedModel:
    """A model to export: an adapter and its base model, or a model after full fine-tuning.

    Attributes:
        adapter: directory of the adapter; None after full fine-tuning.
        base_model: hub name, directory or built-in name; None for the one that the adapter names.
        trust_template: class path of the adapter's prompt template, if its module may be imported.

    >>> TrainedModel(adapter=None, base_model="typst-nano").load().model.config.model_type
    'qwen3'
    """

    adapter: Path | None
    base_model: str | None
    trust_template: str | None = None

    @classmethod
    def find(cls, directory: str, base_model: str | None = None, trust_template: str | None = None) -> TrainedModel:
        """Returns the trained model in the directory of a run, of an adapter, or of a model.

        Raises:
            UserError: when there is none.
        """
        model = model_directory(directory)
        if model:
            return cls(None, str(model), trust_template)
        return cls(adapter_directory(directory), base_model, trust_template)

    def load(self, use_4bit: bool = False) -> Generator:
        """Loads the model; by default in 16 bits, which merging needs."""
        return Generator.load(
            self.adapter,
            self.base_model,
            use_4bit=use_4bit,
            compile=False,
            trust_template=self.trust_template,
        )

    @property
    def directory(self) -> Path:
        """Where the trained weights are."""
        return self.adapter or Path(self.base_model or "")


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        path: the file or directory.
        comparison: how similar it is to the original; None when it was not checked.
        commands: shell commands that load it into the engine.

    >>> Export(Path("merged"), Comparison(0.5, 0.5, 4, 4)).comparison.num_same
    4
    """

    path: Path
    comparison: Comparison | None = None
    commands: Sequence[str] = ()


def export_merged(
    trained: TrainedModel,
    output: Path,
    dtype: Dtype = "bfloat16",
    shard_size: str = "5GB",
    records: str | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Export:
    """Writes the merged weights as a directory that transformers loads.

    Args:
        trained: the model.
        output: the directory, which must be empty or not exist, unless ``overwrite`` replaces an earlier export.
        dtype: of the weights.
        shard_size: maximum size of a weights file.
        records: file of pairs to compare the result on; None for the samples.
        check: whether to load the result and compare it.
        overwrite: whether to replace an earlier export.

    Raises:
        UserError: when the adapter can't be merged, or the result is not the same model.

    >>> import tempfile
    >>> trained = TrainedModel(adapter=None, base_model="typst-nano")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     export = export_merged(trained, Path(directory), check=False)
    ...     (export.path / "model.safetensors").is_file()
    True
    """
    check_separate(output, [trained.directory])
    check_export(output, overwrite)
    generator = trained.load()
    encoder = generator.encoder()
    pairs = load_pairs(records, encoder.template) if check else []
    with export_directory(output, overwrite) as scratch:
        model, metadata = merge_adapter(generator.model), adapter_metadata(trained.directory)
        write_merged(model, encoder, scratch, getattr(torch, dtype), shard_size, generator.settings, metadata)
    del generator, model  # the two models that are compared should be the only ones in memory
    if not check:
        return Export(output)
    merged = Generator.load(None, str(output), use_4bit=False, compile=False)
    comparison = compare_models(trained.load(), merged, pairs)
    comparison.check(dtype)
    return Export(output, comparison)


def export_vllm(
    trained: TrainedModel,
    output: Path,
    dtype: Dtype = "bfloat16",
    shard_size: str = "5GB",
    records: str | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Export:
    """Writes the merged weights as `export_merged` does, and returns the commands that serve them with vLLM.

    >>> import tempfile
    >>> trained = TrainedModel(adapter=None, base_model="typst-nano")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     export_vllm(trained, Path(directory), check=False).commands[0].split()[:2]
    ['vllm', 'serve']
    """
    export = export_merged(trained, output, dtype, shard_size, records, check, overwrite)
    context_length = AutoConfig.from_pretrained(output).max_position_embeddings
    base_model = trained.base_model or (adapter_base(trained.adapter) if trained.adapter else None) or ""
    lora_rank = plain_lora_rank(trained.adapter) if trained.adapter and loads_in_other_engines(base_model) else None
    commands = vllm_commands(output, base_model, trained.adapter, lora_rank, context_length)
    return Export(output, export.comparison, commands)


def export_gguf(
    trained: TrainedModel,
    output: Path,
    weights_type: GgufType = "f16",
    records: str | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Export:
    """Writes the merged weights and the tokenizer as ``model.gguf``, for llama.cpp.

    Args:
        trained: the model.
        output: the directory, which must be empty or not exist, unless ``overwrite`` replaces an earlier export.
        weights_type: of the matrices: 16-bit floats, or 8-bit integers in blocks.
        records: file of pairs to compare the result on; None for the samples.
        check: whether to load the result and compare it.
        overwrite: whether to replace an earlier export.

    Raises:
        UserError: when llama.cpp does not support the architecture or the tokenizer, the adapter can't be merged, or
            the result is not the same model.

    >>> import tempfile
    >>> trained = TrainedModel(adapter=None, base_model="typst-nano")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     export = export_gguf(trained, Path(directory), "q8_0", check=False)
    ...     export.path.name, export.path.stat().st_size < 8_000_000
    ('model.gguf', True)
    """
    return _export_gguf(trained, output, weights_type, records, check, overwrite, with_modelfile=False)


def export_ollama(
    trained: TrainedModel,
    output: Path,
    weights_type: GgufType = "f16",
    records: str | None = None,
    check: bool = True,
    overwrite: bool = False,
) -> Export:
    """Writes ``model.gguf`` as `export_gguf` does, and a Modelfile for Ollama.

    >>> import tempfile
    >>> trained = TrainedModel(adapter=None, base_model="typst-nano")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     export_ollama(trained, Path(directory), check=False).path.read_text().split("\\n")[0]
    'FROM ./model.gguf'
    """
    export = _export_gguf(trained, output, weights_type, records, check, overwrite, with_modelfile=True)
    path = output / "Modelfile"
    return Export(path, export.comparison, [f"ollama create typst-lit -f {shlex.quote(str(path))}"])


def _export_gguf(
    trained: TrainedModel,
    output: Path,
    weights_type: GgufType,
    records: str | None,
    check: bool,
    overwrite: bool,
    with_modelfile: bool,
) -> Export:
    check_separate(output, [trained.directory])
    check_export(output, overwrite)
    generator = trained.load()
    encoder = generator.encoder()
    tokenizer: Any = encoder.tokenizer
    pretokenizer_name(tokenizer)  # fails before anything is written
    pairs = load_pairs(records, encoder.template) if check else []
    model: Any = merge_adapter(generator.model)
    config, path = model.config, output / GGUF_FILE
    with export_directory(output, overwrite) as scratch:
        write_gguf(model, tokenizer, scratch / GGUF_FILE, weights_type)
        if with_modelfile:
            text = modelfile(GGUF_FILE, config.max_position_embeddings, tokenizer.eos_token, generator.settings)
            atomic_write(scratch / "Modelfile", text.encode())
    del generator, model  # the two models that are compared should be the only ones in memory
    if not check:
        return Export(path)
    before = trained.load()
    after = Generator(read_gguf(path, config), tokenizer, before.templates)
    comparison = compare_models(before, after, pairs)
    comparison.check(weights_type)
    return Export(path, comparison)


def prepare_for_hub(
    trained: TrainedModel,
    run_dir: Path,
    output: Path,
    records: str | None = None,
    render_page: bool = True,
    overwrite: bool = False,
) -> Export:
    """Writes the directory to upload: the trained files, and a card with the scores of the run and an example page.

    Args:
        trained: the model.
        run_dir: directory of the run, for its scores.
        output: the directory, which must be empty or not exist, unless ``overwrite`` replaces an earlier export.
        records: file of pairs, the first of which is generated for the example page; None for the samples.
        render_page: whether to generate an example page.
        overwrite: whether to replace an earlier export.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     adapter, output = Path(directory, "adapter"), Path(directory, "hub")
    ...     adapter.mkdir()
    ...     _ = (adapter / "adapter_config.json").write_text("{}")
    ...     export = prepare_for_hub(TrainedModel(adapter, None), Path(directory), output, render_page=False)
    ...     sorted(path.name for path in export.path.iterdir() if not path.name.startswith("."))
    ['README.md', 'adapter_config.json']
    """
    check_separate(output, [trained.directory])
    check_export(output, overwrite)
    page = None
    if render_page:
        generator = trained.load(use_4bit=True)
        record = load_pairs(records, generator.encoder().template, count=1)[0]["input"]
        with Typesetter(workers=1) as typesetter:
            result = typesetter.compile(generator.generate_one(record).source, ppi=72)
        page = result.pages[0] if result.pages else None
    with export_directory(output, overwrite) as scratch:
        write_hub_directory(trained.directory, scratch, read_test_scores(run_dir), page)
    return Export(output)
