"""What Ollama, vLLM and the hub want beside the weights."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from typst_lit.errors import UserError
from typst_lit.inference.backends.vllm import max_lora_rank

PICTURE = "page.png"


def modelfile(weights: str, context: int, end: str) -> str:
    """Returns Ollama's Modelfile: the prompt goes through as it is, and the document ends where the model ends it."""
    return (
        f'FROM ./{weights}\nTEMPLATE """{{{{ .Prompt }}}}"""\nPARAMETER temperature 0.7\nPARAMETER top_p 0.95\n'
        f"PARAMETER top_k 50\nPARAMETER repeat_penalty 1.0\nPARAMETER num_ctx {context}\nPARAMETER num_predict 2048\n"
        f'PARAMETER stop "{end}"\n'
    )


def vllm_commands(merged: Path, base: str, adapter: Path | None, rank: int | None, context: int) -> list[str]:
    """Returns the commands that serve the merged model, and the adapter beside its base where vLLM can."""
    commands = [f"vllm serve {shlex.quote(str(merged))} --served-model-name typst-lit --max-model-len {context}"]
    if rank is not None:
        commands.append(
            f"vllm serve {shlex.quote(base)} --enable-lora --lora-modules typst-lit={shlex.quote(str(adapter))} "
            f"--max-lora-rank {max_lora_rank(rank)} --max-model-len {context}"
        )
    return commands


def hub_folder(adapter: Path, out: Path, scores: dict[str, Any] | None, picture: bytes | None) -> None:
    """Writes what is uploaded: the adapter's files, and a card with its scores and a page that it made."""
    shutil.copytree(adapter, out, dirs_exist_ok=True)
    card = out / "README.md"
    text = card.read_text("utf-8") if card.is_file() else "# Typst writer\n"
    if scores:
        rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items() if isinstance(value, float))
        text += f"\n## Scores\n\nOn held-out records (`typst-lit test`):\n\n| | |\n|---|---|\n{rows}\n"
    if picture:
        (out / PICTURE).write_bytes(picture)
        text += f"\n## A page\n\n![a page of a document it wrote]({PICTURE})\n"
    card.write_text(text, "utf-8")


def scores_of(run: Path) -> dict[str, Any] | None:
    """Returns the scores that `typst-lit test` left in a run's directory, if it was run."""
    report = run / "test" / "report.json"
    return dict(json.loads(report.read_text("utf-8"))["scores"]) if report.is_file() else None


def push(folder: Path, repository: str) -> str:
    """Uploads a folder to the hub and returns where it is.

    Raises:
        UserError: when the hub can't be reached or refuses.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, exist_ok=True, private=True)
        return str(HfApi().upload_folder(folder_path=folder, repo_id=repository))
    except Exception as error:  # whatever the network or the hub does
        raise UserError(f"{repository}: the hub was not written to ({(str(error).splitlines() or [''])[0]}). "
                        "`hf auth login` gives access; the folder stays as it is.") from error  # fmt: skip
