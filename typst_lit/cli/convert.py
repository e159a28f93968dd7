"""``typst-lit convert``: a first-generation Qwen as a Qwen2 folder, for every engine that knows Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from typst_lit.cli.parser import CommandParser
from typst_lit.errors import UserError


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit convert", description=run.__doc__)
    made.add_argument("--base-model", type=str, required=True, help="Hub name or folder of the model.")
    made.add_argument("--output", type=str, required=True, help="The folder to write; it must not hold a model yet.")
    made.add_argument("--revision", type=str | None, default=None, help="Branch, tag or commit on the hub.")
    return made


def run(args: Sequence[str]) -> None:
    """Writes a base model in 16 bits, in the form that other engines load: safetensors, tokenizer, configuration."""
    config = parser().parse_args(list(args))
    out = Path(config.output)
    if (out / "config.json").exists():
        raise UserError(f"{out} holds a model already: name another --output.")

    import torch

    from typst_lit.model.backbones import PretrainedBackbone

    backbone = PretrainedBackbone()
    tokenizer = backbone.load_tokenizer(config.base_model, config.revision, trust_remote_code=False)
    model: Any = backbone.load_model(
        config.base_model, config.revision, trust_remote_code=False, use_4bit=False, device=torch.device("cpu")
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{config.base_model} as {type(model).__name__}: {out}")
