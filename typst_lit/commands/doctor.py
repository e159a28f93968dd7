"""``typst-lit doctor``: what this machine can run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from typst_lit.commands.parsing import SmallParser
from typst_lit.errors import UserError
from typst_lit.typesetting.compiling import Typesetter

if TYPE_CHECKING:
    import torch


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = SmallParser(prog="typst-lit doctor", description=run.__doc__)
    made.add_class_arguments(Typesetter, "typesetting")
    return made


def run(args: Sequence[str]) -> None:
    """Prints what this machine can run, and what is missing."""
    made = parser()
    config = made.instantiate_classes(made.parse_args(list(args)))
    for room, findings in (
        ("machine", _machine()),
        ("training", _training()),
        ("typesetting", _typesetting(config.typesetting)),
    ):
        print(room)
        for name, finding in findings:
            print(f"  {name:<14}{finding}")


def _machine() -> Iterator[tuple[str, str]]:
    import psutil

    memory = psutil.virtual_memory()
    yield "system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield "processor", f"{os.cpu_count()} cores, {memory.total / 2**30:.0f} GiB ({memory.available / 2**30:.0f} free)"
    names = ("typst-lit", "torch", "lightning", "transformers", "peft", "bitsandbytes", "typst")
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _training() -> Iterator[tuple[str, str]]:
    import torch

    from typst_lit.model.attention import kernel_of
    from typst_lit.model.backbones import compute_dtype

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if not devices:
        yield "GPU", "none: training runs on the CPU, which is slow for models above 0.5 billion parameters"
    for device in devices:
        properties = torch.cuda.get_device_properties(device)
        capability = f"capability {properties.major}.{properties.minor}"
        dtype = str(compute_dtype(device)).removeprefix("torch.")
        yield (
            f"GPU {device.index}",
            f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, {capability}, {dtype}",
        )
    for device in devices or [torch.device("cpu")]:
        dtype = compute_dtype(device)
        found = kernel_of(device, dtype), kernel_of(device, dtype, packed=True)
        yield "attention", f"{found[0]}; packed documents: {found[1]}"
    yield "4-bit", _four_bit(devices[0] if devices else torch.device("cpu"))


def _four_bit(device: torch.device) -> str:
    """Says whether a 4-bit layer can be made and trained through."""
    import torch

    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to(device)
        x = torch.randn(2, 64, device=device, requires_grad=True)
        layer(x).sum().backward()
    except Exception as error:
        return f"does not work ({error}): use --model.use_4bit false"
    return "works" if x.grad is not None and bool(x.grad.isfinite().all()) else "gives wrong gradients"


def _typesetting(typesetter: Typesetter) -> Iterator[tuple[str, str]]:
    try:
        with typesetter:
            granted = typesetter.containment()
            works = typesetter.compile("= It works").ok
    except UserError as error:
        yield "compiler", str(error)
        return
    yield "compiler", "works" if works else "does not work"
    yield (
        "network",
        (
            "cut off from documents (own namespace)"
            if granted["network"]
            else "not cut off, as this system permits no namespaces; packages are not fetched all the same"
        ),
    )
    yield "memory", "limited" if granted["memory"] else "not limited: this system knows no limit of the address space"
    import typst

    families = typst.Fonts(font_paths=typesetter.font_paths).families()
    house = "Times New Roman"
    has = house if house in families else f"no {house}, for which documents fall back to Libertinus Serif"
    yield "fonts", f"{len(families)} families; {has}"
