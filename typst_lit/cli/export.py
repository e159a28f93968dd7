"""``typst-lit export``: what was trained, in the forms that other engines take."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from typst_lit.cli.parser import CommandParser
from typst_lit.errors import UserError

if TYPE_CHECKING:
    from typst_lit.exporting.merging import Agreement
    from typst_lit.inference.generator import Generator

SAMPLES = 4  # records to compare on
LARGEST_CHANGE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.05, "f16": 0.02, "q8_0": 0.1}  # of the mean loss


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
    out = Path(config.output)
    there = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if config.to == "hub" and config.push:
        _push(config, out)
        return
    if there:
        raise UserError(f"{out} is not empty: name another --output.")
    if config.to == "hub":
        _prepare_for_hub(config, out)
        return

    import torch

    from typst_lit.exporting.gguf import read_gguf, splitter_of, write_gguf
    from typst_lit.exporting.merging import agreement, write_merged
    from typst_lit.inference.generator import Generator
    from typst_lit.model.adapters import adapter_base

    adapter, base_model = _trained(config)
    before = Generator.load(adapter, base_model, use_4bit=False, compile=False)
    tokenizer = before.encoder().tokenizer
    if config.to in ("gguf", "ollama"):
        splitter_of(tokenizer)  # before anything is written
    pairs = _pairs(config, before) if config.check else []
    model: Any = before.model
    model_config = model.config
    del model  # each reload below shall be the only model in memory beside the one it is compared with
    context = model_config.max_position_embeddings
    if config.to in ("merged", "vllm"):
        write_merged(before, out, getattr(torch, config.dtype), config.shard_size)
        print(f"Merged: {out}")
        if config.check:
            before = Generator.load(adapter, base_model, use_4bit=False, compile=False)
            after = Generator.load(None, str(out), use_4bit=False, compile=False)
            _tell(agreement(before, after, pairs), config.dtype)
        if config.to == "vllm":
            from typst_lit.exporting.targets import vllm_commands
            from typst_lit.model.adapters import plain_lora_rank
            from typst_lit.model.backbones import known_elsewhere

            base = base_model or (adapter_base(adapter) if adapter else None) or ""
            rank = plain_lora_rank(adapter) if adapter and known_elsewhere(base) else None
            print("Serve it with one of:")
            for command in vllm_commands(out, base, adapter, rank, context):
                print(f"  {command}")
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.gguf"
    from typst_lit.exporting.merging import merge

    write_gguf(merge(before), tokenizer, path, config.gguf)
    print(f"GGUF ({config.gguf}): {path}")
    if config.check:
        before = Generator.load(adapter, base_model, use_4bit=False, compile=False)
        after = Generator(read_gguf(path, model_config), tokenizer, before.templates)
        _tell(agreement(before, after, pairs), config.gguf)
    if config.to == "ollama":
        from typst_lit.exporting.targets import modelfile

        (out / "Modelfile").write_text(modelfile(path.name, context, tokenizer.eos_token), "utf-8")
        print(f"Modelfile: {out / 'Modelfile'}\n  ollama create typst-lit -f {out / 'Modelfile'}")


def _trained(config: Namespace) -> tuple[Path | None, str | None]:
    """Returns the adapter and the base model that are meant; no adapter where a model was trained whole."""
    from typst_lit.model.adapters import adapter_directory, model_directory

    whole = model_directory(config.model)
    return (None, str(whole)) if whole else (adapter_directory(config.model), config.base_model)


def _tell(found: Agreement, kind: str) -> None:
    """Prints how alike the result is to what it was made from.

    Raises:
        UserError: when it is another model.
    """
    print(f"On {found.documents} records: {found}.")
    if abs(found.after - found.before) > LARGEST_CHANGE[kind]:
        raise UserError(
            "the result is not the model that was exported: its loss differs by more than rounding can explain. Do "
            "not use it. Does the adapter train layers that share weights with others (modules_to_save)?"
        )
    if found.same < found.documents:
        print(f"  ({kind} rounds the merged weights; where two tokens are nearly as likely, a greedy choice shows it.)")


def _pairs(config: Namespace, generator: Generator) -> list[dict[str, Any]]:
    """Returns a few pairs that the model's template can render.

    Raises:
        UserError: when the records given, or the samples, have other fields.
    """
    from typst_lit.data.records import parse_record
    from typst_lit.data.sources import FileSource

    path = config.records or str(files("typst_lit") / "data/samples/held_out.json")
    found: list[dict[str, Any]] = []
    for row in FileSource(path).rows():
        parsed = parse_record(row.value, generator.encoder().template.fields, needs_reference=True)
        if parsed.errors or row.error:
            faults = row.error or "; ".join(parsed.errors)
            raise UserError(f"{row.origin}: {faults}. Name pairs to compare on with --records, or use --no-check.")
        found.append({"input": parsed.fields, "output": parsed.reference})
        if len(found) == SAMPLES:
            break
    return found


def _prepare_for_hub(config: Namespace, out: Path) -> None:
    from typst_lit.exporting.targets import hub_folder, scores_of
    from typst_lit.inference.generator import Generator
    from typst_lit.typesetting.typesetter import Typesetter

    adapter, base_model = _trained(config)
    picture = None
    if config.check:
        generator = Generator.load(adapter, base_model, compile=False)
        source = generator.generate_one(_pairs(config, generator)[0]["input"]).source
        with Typesetter() as typesetter:
            result = typesetter.compile(source, ppi=72)
        picture = result.pages[0] if result.ok and result.pages else None
    hub_folder(adapter or Path(base_model or ""), out, scores_of(Path(config.model)), picture)
    print(f"Prepared, not uploaded: {out}")
    for file in sorted(out.iterdir()):
        print(f"  {file.name}  {file.stat().st_size:,} bytes")
    print("Look at README.md, the card, and change it as you like. Then give the same command with\n"
          f"  --push --repo {config.repo or 'owner/name'}")  # fmt: skip


def _push(config: Namespace, out: Path) -> None:
    from typst_lit.exporting.targets import push

    if not config.repo:
        raise UserError("--push needs the repository: --repo owner/name.")
    if not (out / "adapter_config.json").is_file() or not (out / "README.md").is_file():
        raise UserError(f"{out} is not prepared yet: give the command without --push first, and look at what it wrote.")
    print(f"Uploaded: {push(out, config.repo)}")
