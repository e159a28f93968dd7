"""``typst-lit doctor``: what this machine can run, what is wrong, and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ActionYesNo, ArgumentParser

from typst_lit.cli.parser import CommandParser
from typst_lit.errors import UserError
from typst_lit.typesetting.typesetter import Typesetter

if TYPE_CHECKING:
    import torch

GIB = 2**30
PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "torchmetrics", "jsonargparse", "typst")
LEAST_DISK_GIB = 8  # Qwen3-1.7B in the hub's cache, and checkpoints
BASE_MODEL = "Qwen/Qwen3-1.7B"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        room: what it belongs to.
        name: what was looked at.
        found: what there is.
        mend: the command, or else the way, that mends what is wrong; None when nothing is.
    """

    room: str
    name: str
    found: str
    mend: str | None = None


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit doctor", description=run.__doc__)
    made.add_argument("--json", action=ActionYesNo(no_prefix="no-"), default=False, help="Prints JSON.")
    made.add_class_arguments(Typesetter, "typesetting")
    return made


def run(args: Sequence[str]) -> None:
    """Prints what this machine can run, and what is missing."""
    made = parser()
    config = made.instantiate_classes(made.parse_args(list(args)))
    findings = [*_machine(), *_packages(), *_training(), *_hub(), *_typesetting(config.typesetting)]
    if config.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    for room in dict.fromkeys(finding.room for finding in findings):
        print(room)
        for finding in findings:
            if finding.room == room:
                print(f"  {finding.name:<14}{finding.found}")
                if finding.mend:
                    print(f"  {'':<14}-> {finding.mend}")
    wrong = sum(finding.mend is not None for finding in findings)
    print("\nNothing is wrong." if not wrong else f"\n{wrong} to mend: the lines with ->.")


def _machine() -> Iterator[Finding]:
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    yield Finding("machine", "system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    free = f"{memory.total / GIB:.0f} GiB ({memory.available / GIB:.0f} free)"
    yield Finding("machine", "processor", f"{os.cpu_count()} cores, {free}")
    little = disk.free / GIB < LEAST_DISK_GIB
    yield Finding(
        "machine", "disk", f"{disk.free / GIB:.0f} GiB free here",
        f"free some space: base model and checkpoints take up to {LEAST_DISK_GIB} GiB" if little else None,
    )  # fmt: skip


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wanted = {}
    for line in requires("typst-lit") or []:
        requirement = Requirement(line)
        if requirement.marker is None:
            wanted[requirement.name.lower()] = requirement
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        range_ = wanted.get(name)
        fits = range_ is None or (found != "not installed" and range_.specifier.contains(found, prereleases=True))
        yield Finding("packages", name, found, None if fits else f"pip install '{range_}'")


def _training() -> Iterator[Finding]:
    import torch

    from typst_lit.model.attention import MATH, attention_backend
    from typst_lit.model.backbones import compute_dtype

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not devices:
        found, mend = "none: training runs on the CPU, which is slow for models above 0.5 billion parameters", None
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            found, mend = "there is one, but this torch is a CPU build", "pip install --force-reinstall torch"
        elif shutil.which("nvidia-smi"):
            found, mend = (
                "there is one, but torch can't use it",
                "nvidia-smi   (a driver that is older than torch's CUDA?)",
            )
        yield Finding("training", "GPU", found, mend)
    for device in devices:
        properties = torch.cuda.get_device_properties(device)
        free, _ = torch.cuda.mem_get_info(device)
        memory = f"{properties.total_memory / GIB:.1f} GiB ({free / GIB:.1f} free)"
        capability = f"capability {properties.major}.{properties.minor}"
        yield Finding("training", f"GPU {device.index}", f"{properties.name}, {memory}, {capability}")
    for device in devices or [torch.device("cpu")]:
        dtype = compute_dtype(device)
        kernels = attention_backend(device, dtype), attention_backend(device, dtype, packed=True)
        yield Finding("training", "precision", str(dtype).removeprefix("torch."))
        yield Finding(
            "training", "attention", f"{kernels[0]}; packed documents: {kernels[1]}",
            "pip install --upgrade torch   (no fused attention kernel took the call)" if MATH in kernels else None,
        )  # fmt: skip
    fault = _four_bit_fault(devices[0] if devices else torch.device("cpu"))
    yield Finding(
        "training", "4-bit", fault or "works",
        "pip install --upgrade bitsandbytes, or --model.use_4bit false" if fault else None,
    )  # fmt: skip


def _four_bit_fault(device: torch.device) -> str | None:
    """Says why no 4-bit layer can be made and trained through; None when one can."""
    import torch

    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to(device)
        x = torch.randn(2, 64, device=device, requires_grad=True)
        layer(x).sum().backward()
    except Exception as error:
        return f"does not work ({error})"
    return None if x.grad is not None and bool(x.grad.isfinite().all()) else "gives wrong gradients"


def _hub() -> Iterator[Finding]:
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        cached = []
    yield Finding("hub", "models here", ", ".join(cached) or "none in the cache")
    try:
        HfApi().model_info(BASE_MODEL, timeout=5)
    except Exception as error:  # whatever the network does, the answer is that it can't be reached
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        mend = "unset HF_HUB_OFFLINE, mend the network, or name a folder or typst-nano as base model"
        yield Finding("hub", "access", f"not reached ({reason})", mend)
    else:
        yield Finding("hub", "access", "works")


def _typesetting(typesetter: Typesetter) -> Iterator[Finding]:
    try:
        with typesetter:
            granted = typesetter.isolation()
            works = typesetter.compile("= It works").ok
    except UserError as error:
        yield Finding("typesetting", "compiler", str(error), "pip install --upgrade typst")
        return
    mend = None if works else "pip install --force-reinstall typst"
    yield Finding("typesetting", "compiler", "works" if works else "does not work", mend)
    yield Finding(
        "typesetting", "network",
        "cut off from documents (own namespace)" if granted["network"]
        else "not cut off, as this system permits no namespaces; packages are not fetched all the same",
    )  # fmt: skip
    yield Finding(
        "typesetting", "memory",
        "limited" if granted["memory"] else "not limited: this system knows no limit of the address space",
    )  # fmt: skip
    import typst

    families = typst.Fonts(font_paths=typesetter.font_paths).families()
    house = "Times New Roman"
    has = house if house in families else f"no {house}, for which documents fall back to Libertinus Serif"
    yield Finding("typesetting", "fonts", f"{len(families)} families; {has}")
