"""``typst-lit export``: what was trained, in the formats of other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typst_lit.cli.parser import Command
from typst_lit.errors import UserError, plural

if TYPE_CHECKING:
    from typst_lit.exporting.export import Export


@Command
def export(
    *,
    model: str,
    to: Literal["merged", "gguf", "ollama", "vllm", "hub"],
    output: str,
    base_model: str | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    gguf: Literal["f16", "q8_0"] = "f16",
    shard_size: str = "5GB",
    records: str | None = None,
    check: bool = True,
    repo: str | None = None,
    push: bool = False,
    trust_template: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained model as merged weights, GGUF, for Ollama, vLLM or the hub.

    The result is loaded again and compared with the model that was exported.

    Args:
        model: Directory of a run, of an adapter, or of a fully fine-tuned model.
        to: The format.
        output: The directory to write; it must be empty or not exist, unless --overwrite replaces an earlier export.
        base_model: Hub name or directory of the base model; by default what the adapter names.
        dtype: Type of the merged weights.
        gguf: Type of the weights in a GGUF file.
        shard_size: Maximum size of a file of merged weights.
        records: Pairs to compare on; by default the samples of the package.
        check: Load the result again and compare.
        repo: The repository on the hub, OWNER/NAME.
        push: Upload what an earlier export to the hub prepared.
        trust_template: Class path of the adapter's prompt template, my_module.MyTemplate, if it is neither part of
            typst_lit nor of a plugin: the module is imported.
        overwrite: Replace an earlier export.
    """
    path = Path(output)
    if to == "hub" and push:
        _push(path, repo)
        return

    from typst_lit.exporting import (
        TrainedModel,
        export_gguf,
        export_merged,
        export_ollama,
        export_vllm,
        prepare_for_hub,
    )

    trained = TrainedModel.find(model, base_model, trust_template)
    if to == "hub":
        prepare_for_hub(trained, Path(model), path, records, check, overwrite)
        _list_prepared(path, repo or "OWNER/NAME")
    elif to == "merged":
        _report("Merged", export_merged(trained, path, dtype, shard_size, records, check, overwrite), dtype)
    elif to == "vllm":
        _report("Merged", export_vllm(trained, path, dtype, shard_size, records, check, overwrite), dtype)
    elif to == "gguf":
        _report(f"GGUF ({gguf})", export_gguf(trained, path, gguf, records, check, overwrite), gguf)
    else:
        _report("Modelfile", export_ollama(trained, path, gguf, records, check, overwrite), gguf)


def _report(title: str, result: Export, weights_format: str) -> None:
    """Prints where the export is, how similar it is to the original, and the commands that load it."""
    print(f"{title}: {result.path}")
    comparison = result.comparison
    if comparison:
        print(f"On {plural(comparison.num_documents, 'record')}: {comparison}.")
        if comparison.num_same < comparison.num_documents:
            print(
                f"  ({weights_format} rounds the merged weights; where two tokens are almost equally likely, greedy "
                "decoding may choose the other one.)"
            )
    if result.commands:
        print("Load it with:" if len(result.commands) == 1 else "Serve it with one of:")
    for command in result.commands:
        print(f"  {command}")


def _list_prepared(output: Path, repository: str) -> None:
    print(f"Prepared, not uploaded: {output}")
    for file in sorted(path for path in output.iterdir() if not path.name.startswith(".")):
        print(f"  {file.name}  {file.stat().st_size:,} bytes")
    print("Read the model card, README.md, and edit it as you like. Then run the same command with")
    print(f"  --push --repo {repository}")


def _push(output: Path, repository: str | None) -> None:
    from typst_lit.exporting.targets import push_to_hub

    if not repository:
        raise UserError("needs a repository.", setting="push", hint="Name it with `repo=OWNER/NAME`.")
    print(f"Uploaded: {push_to_hub(output, repository)}")
