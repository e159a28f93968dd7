"""What Ollama, vLLM and the Hugging Face hub need in addition to the weights."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from typst_lit.errors import UserError
from typst_lit.files import atomic_write
from typst_lit.inference.backends.vllm import max_lora_rank
from typst_lit.inference.settings import GenerationSettings

PAGE_IMAGE = "page.png"


def modelfile(weights: str, context_length: int, eos_token: str, settings: GenerationSettings) -> str:
    """Returns Ollama's Modelfile for a GGUF file.

    The template passes the prompt through unchanged. Ollama's repetition penalty also counts the tokens of the prompt,
    which documents must copy, so it is off.

    Args:
        weights: name of the GGUF file, in the same directory.
        context_length: maximum number of tokens of prompt and document.
        eos_token: ends a document.
        settings: how to sample.

    >>> print(modelfile("model.gguf", 8192, "<|im_end|>", GenerationSettings()))
    FROM ./model.gguf
    TEMPLATE \"\"\"{{ .Prompt }}\"\"\"
    PARAMETER temperature 0.0
    PARAMETER top_p 0.95
    PARAMETER top_k 50
    PARAMETER repeat_penalty 1.0
    PARAMETER num_ctx 8192
    PARAMETER num_predict 2048
    PARAMETER stop "<|im_end|>"
    <BLANKLINE>
    """
    parameters = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "repeat_penalty": 1.0,
        "num_ctx": context_length,
        "num_predict": settings.max_tokens,
        "stop": f'"{eos_token}"',
    }
    lines = [f"FROM ./{weights}", 'TEMPLATE """{{ .Prompt }}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def vllm_commands(
    merged: Path, base_model: str, adapter: Path | None, lora_rank: int | None, context_length: int
) -> list[str]:
    """Returns the commands that serve the merged model, and the adapter on its base model where vLLM can do that.

    Args:
        merged: directory of the merged model.
        base_model: hub name or directory.
        adapter: directory of the adapter.
        lora_rank: rank of the adapter; None when vLLM can't apply it to the base model.
        context_length: maximum number of tokens of prompt and document.

    >>> for command in vllm_commands(Path("merged"), "Qwen/Qwen3-1.7B", Path("adapter"), 12, 8192):
    ...     print(command)
    vllm serve merged --served-model-name typst-lit --max-model-len 8192
    vllm serve Qwen/Qwen3-1.7B --enable-lora --lora-modules typst-lit=adapter --max-lora-rank 16 --max-model-len 8192
    """
    commands = [f"vllm serve {shlex.quote(str(merged))} --served-model-name typst-lit --max-model-len {context_length}"]
    if lora_rank is not None:
        commands.append(
            f"vllm serve {shlex.quote(base_model)} --enable-lora --lora-modules typst-lit={shlex.quote(str(adapter))} "
            f"--max-lora-rank {max_lora_rank(lora_rank)} --max-model-len {context_length}"
        )
    return commands


def write_hub_directory(
    source: Path, output: Path, scores: Mapping[str, Any] | None = None, page: bytes | None = None
) -> None:
    """Writes what is uploaded to the hub: the files of an adapter or a model, without hidden ones, and a model card.

    Args:
        source: directory of the adapter or the model.
        output: the directory to write, which must be empty.
        scores: metrics on held-out records, for the card.
        page: PNG image of a generated page, for the card.
    """
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith("."):
            with file.open("rb") as stream:
                atomic_write(output / file.name, partial(shutil.copyfileobj, stream))
    card_path = output / "README.md"
    card = card_path.read_text("utf-8") if card_path.is_file() else "# Typst writer\n"
    if scores:
        rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items() if isinstance(value, float))
        card += "\n## Scores\n\nOn held-out records, by `typst-lit test`:\n\n"
        card += f"| metric | score |\n|---|---|\n{rows}\n"
    if page:
        atomic_write(output / PAGE_IMAGE, page)
        card += f"\n## Example\n\nThe first page of a generated document:\n\n![First page]({PAGE_IMAGE})\n"
    atomic_write(card_path, card.encode())


def read_test_scores(run_dir: Path) -> dict[str, Any] | None:
    """Returns the scores that ``typst-lit test`` wrote in a run's directory; None when it was not run."""
    report = run_dir / "test" / "report.json"
    return dict(json.loads(report.read_text("utf-8"))["scores"]) if report.is_file() else None


def push_to_hub(directory: Path, repository: str) -> str:
    """Uploads a directory to a private repository of the hub, which is created if necessary, and returns its URL.

    Args:
        directory: as `write_hub_directory` wrote it.
        repository: ``owner/name``.

    Raises:
        UserError: when the directory is not prepared, or the hub can't be reached or refuses the upload.

    >>> push_to_hub(Path("no/such/directory"), "owner/name")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    typst_lit.errors.UserError: no/such/directory: nothing is prepared for the hub in this directory. Run the same ...
    """
    has_weights_config = any((directory / name).is_file() for name in ("adapter_config.json", "config.json"))
    if not has_weights_config or not (directory / "README.md").is_file():
        raise UserError(
            f"{directory}: nothing is prepared for the hub in this directory.",
            hint="Run the same command without `push=true` first, and read what it wrote.",
        )
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, exist_ok=True, private=True)
        return str(HfApi().upload_folder(folder_path=directory, repo_id=repository, ignore_patterns=".*"))
    except Exception as error:  # whatever the network or the hub does
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{repository}: the upload failed ({reason}).",
            hint=f"`hf auth login` gives access. {directory} is unchanged.",
        ) from error
