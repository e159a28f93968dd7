"""``typst-lit convert``: a first-generation Qwen as Qwen2, which every engine loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typst_lit.cli.parser import Command
from typst_lit.manifest import check_export, check_separate, export_directory


@Command
def convert(*, base_model: str, output: str, revision: str | None = None, overwrite: bool = False) -> None:
    """Write a first-generation Qwen as Qwen2, for other engines.

    Args:
        base_model: Hub name or directory of the model.
        output: The directory to write weights (16 bits), tokenizer and configuration to.
        revision: Branch, tag or commit on the hub.
        overwrite: Replace an earlier result.
    """
    path = Path(output)
    check_separate(path, [base_model])
    check_export(path, overwrite)
    import torch

    from typst_lit.model.backbones import PretrainedBackbone

    backbone = PretrainedBackbone()
    tokenizer = backbone.load_tokenizer(base_model, revision, trust_remote_code=False)
    model: Any = backbone.load_model(
        base_model, revision, trust_remote_code=False, use_4bit=False, device=torch.device("cpu")
    )
    with export_directory(path, overwrite) as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    print(f"{base_model} as {type(model).__name__}: {path}")
