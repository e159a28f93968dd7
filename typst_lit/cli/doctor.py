"""``typst-lit doctor``: what this machine can run, what is wrong, and the command that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from typst_lit.cli.parser import Command
from typst_lit.errors import UserError
from typst_lit.typesetting.typesetter import Typesetter

if TYPE_CHECKING:
    import torch

GIB = 2**30
PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes", "torchmetrics", "jsonargparse", "typst")
MIN_DISK_GIB = 8  # Qwen3-1.7B in the hub's cache, and checkpoints
BASE_MODEL = "Qwen/Qwen3-1.7B"


@dataclass(frozen=True)
class Finding:
    """What was found out about the machine.

    Attributes:
        section: which part of the report it belongs to.
        name: what was examined.
        found: the state it is in.
        fix: the command, or else the action, that fixes what is wrong; None when nothing is.
    """

    section: str
    name: str
    found: str
    fix: str | None = None


@Command
def doctor(*, json: bool = False, typesetting: Typesetter) -> None:
    """Show what this machine can run, what is wrong, and the command that fixes it.

    Args:
        json: Print a JSON list of findings, each with section, name, found and fix.
        typesetting: The limits of the document that is compiled.
    """
    findings = [*_machine(), *_packages(), *_training(), *_hub(), *_typesetting(typesetting)]
    if json:
        print(dumps([asdict(finding) for finding in findings], indent=2))
        return
    for section in dict.fromkeys(finding.section for finding in findings):
        print(section)
        for finding in findings:
            if finding.section == section:
                print(f"  {finding.name:<14}{finding.found}")
                if finding.fix:
                    print(f"  {'':<14}-> {finding.fix}")
    num_wrong = sum(finding.fix is not None for finding in findings)
    print("\nNothing is wrong." if not num_wrong else f"\n{num_wrong} to fix: the lines with ->.")


def _machine() -> Iterator[Finding]:
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    yield Finding("machine", "system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    free = f"{memory.total / GIB:.0f} GiB ({memory.available / GIB:.0f} free)"
    yield Finding("machine", "processor", f"{os.cpu_count()} cores, {free}")
    fix = None
    if disk.free / GIB < MIN_DISK_GIB:
        fix = f"free some space: base model and checkpoints take up to {MIN_DISK_GIB} GiB"
    yield Finding("machine", "disk", f"{disk.free / GIB:.0f} GiB free here", fix)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    requirements = {}
    for line in requires("typst-lit") or []:
        requirement = Requirement(line)
        if requirement.marker is None:
            requirements[requirement.name.lower()] = requirement
    for name in PACKAGES:
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "not installed"
        required = requirements.get(name)
        fits = required is None or (
            installed != "not installed" and required.specifier.contains(installed, prereleases=True)
        )
        yield Finding("packages", name, installed, None if fits else f"pip install '{required}'")


def _training() -> Iterator[Finding]:
    import torch

    from typst_lit.model.backbones import four_bit_problem

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not devices:
        yield _no_gpu()
    for device in devices:
        properties = torch.cuda.get_device_properties(device)
        free, _ = torch.cuda.mem_get_info(device)
        memory = f"{properties.total_memory / GIB:.1f} GiB ({free / GIB:.1f} free)"
        capability = f"capability {properties.major}.{properties.minor}"
        yield Finding("training", f"GPU {device.index}", f"{properties.name}, {memory}, {capability}")
    for device in devices or [torch.device("cpu")]:
        yield from _kernels(device)
    problem = four_bit_problem(devices[0] if devices else torch.device("cpu"))
    fix = "pip install --upgrade bitsandbytes, or --model.use_4bit false" if problem else None
    yield Finding("training", "4-bit", problem or "works", fix)


def _no_gpu() -> Finding:
    import torch

    found, fix = "none: training runs on the CPU, which is slow for models above 0.5 billion parameters", None
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        found, fix = "there is one, but this torch is a CPU build", "pip install --force-reinstall torch"
    elif shutil.which("nvidia-smi"):
        found = "there is one, but torch can't use it"
        fix = "nvidia-smi   (is the driver older than torch's CUDA?)"
    return Finding("training", "GPU", found, fix)


def _kernels(device: torch.device) -> Iterator[Finding]:
    from typst_lit.model.attention import MATH, attention_backend
    from typst_lit.model.backbones import compute_dtype

    dtype = compute_dtype(device)
    kernels = attention_backend(device, dtype), attention_backend(device, dtype, packed=True)
    yield Finding("training", "precision", str(dtype).removeprefix("torch."))
    fix = "pip install --upgrade torch   (no fused attention kernel took the call)" if MATH in kernels else None
    yield Finding("training", "attention", f"{kernels[0]}; packed documents: {kernels[1]}", fix)


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
    except Exception as error:  # of whatever kind: the hub can't be reached
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        fix = "unset HF_HUB_OFFLINE, fix the network, or use a directory or typst-nano as base model"
        yield Finding("hub", "access", f"not reached ({reason})", fix)
    else:
        yield Finding("hub", "access", "works")


def _typesetting(typesetter: Typesetter) -> Iterator[Finding]:
    import typst

    try:
        with typesetter:
            isolation = typesetter.isolation()
            works = typesetter.compile("= It works").ok
    except UserError as error:
        yield Finding("typesetting", "compiler", str(error), "pip install --upgrade typst")
        return
    fix = None if works else "pip install --force-reinstall typst"
    yield Finding("typesetting", "compiler", "works" if works else "does not work", fix)
    network = "cut off from documents (own namespace)"
    if not isolation["network"]:
        network = "not cut off, as this system permits no namespaces; packages are still not downloaded"
    yield Finding("typesetting", "network", network)
    memory = "limited" if isolation["memory"] else "not limited: this system can't limit the address space"
    yield Finding("typesetting", "memory", memory)
    families = typst.Fonts(font_paths=typesetter.font_paths).families()
    font = "Times New Roman"
    if font not in families:
        font = f"no {font}, so documents that use it are set in Libertinus Serif"
    yield Finding("typesetting", "fonts", f"{len(families)} families; {font}")
