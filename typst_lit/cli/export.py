"""``typst-lit export``: what was trained, in the forms that other engines take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ActionYesNo, ArgumentParser

from typst_lit.cli.parser import CommandParser
from typst_lit.errors import UserError

if TYPE_CHECKING:
    from typst_lit.exporting.export import Export


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit export", description=run.__doc__)
    made.add_argument("--model", type=str, required=True, help="A run's directory, or an adapter's or a model's.")
    made.add_argument("--to", type=Literal["merged", "gguf", "ollama", "vllm", "hub"], required=True, help="For what.")
    made.add_argument(
        "--output", type=str, required=True, help="The folder to write; it must be empty or not be there."
    )
    made.add_argument("--base-model", type=str | None, default=None, help="By default what the adapter names.")
    made.add_argument(
        "--dtype", type=Literal["bfloat16", "float16", "float32"], default="bfloat16", help="Of --to merged."
    )
    made.add_argument("--gguf", type=Literal["f16", "q8_0"], default="f16", help="Kind of GGUF.")
    made.add_argument("--shard-size", type=str, default="5GB", help="Largest file of the merged weights.")
    made.add_argument("--records", type=str | None, default=None, help="Pairs to compare on; else the samples.")
    made.add_argument(
        "--check", action=ActionYesNo(no_prefix="no-"), default=True, help="Open the result again and compare."
    )
    made.add_argument("--repo", type=str | None, default=None, help="The hub repository of --to hub: owner/name.")
    made.add_argument(
        "--push", action=ActionYesNo(no_prefix="no-"), default=False, help="Really upload; else it is only prepared."
    )
    return made


def run(args: Sequence[str]) -> None:
    """Writes a model that was trained in the form another engine takes, opens it again and compares."""
    config = parser().parse_args(list(args))
    output = Path(config.output)
    if config.to == "hub" and config.push:
        _push(output, config.repo)
        return

    from typst_lit.exporting import export

    trained = export.TrainedModel.find(config.model, config.base_model)
    merging = (trained, output, config.dtype, config.shard_size, config.records, config.check)
    if config.to == "hub":
        export.prepare_for_hub(trained, Path(config.model), output, config.records, config.check)
        _list_prepared(output, config.repo or "owner/name")
    elif config.to == "merged":
        _report("Merged", export.export_merged(*merging), config.dtype)
    elif config.to == "vllm":
        _report("Merged", export.export_vllm(*merging), config.dtype)
    elif config.to == "gguf":
        result = export.export_gguf(trained, output, config.gguf, config.records, config.check)
        _report(f"GGUF ({config.gguf})", result, config.gguf)
    else:
        result = export.export_ollama(trained, output, config.gguf, config.records, config.check)
        _report("Modelfile", result, config.gguf)


def _report(title: str, result: Export, weights_format: str) -> None:
    """Prints where the export is, how similar it is to the original, and the commands that load it."""
    print(f"{title}: {result.path}")
    comparison = result.comparison
    if comparison:
        print(f"On {comparison.num_documents} records: {comparison}.")
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
    for file in sorted(output.iterdir()):
        print(f"  {file.name}  {file.stat().st_size:,} bytes")
    print("Read the model card, README.md, and edit it as you like. Then run the same command with")
    print(f"  --push --repo {repository}")


def _push(output: Path, repository: str | None) -> None:
    from typst_lit.exporting.targets import push_to_hub

    if not repository:
        raise UserError("--push needs the repository: --repo owner/name.")
    print(f"Uploaded: {push_to_hub(output, repository)}")
