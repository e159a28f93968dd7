"""The public API: what `import typst_lit` offers, what it costs, and that adapters saved by earlier versions load."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import typst_lit

PACKAGES = (
    "typst_lit", "typst_lit.callbacks", "typst_lit.cli", "typst_lit.data", "typst_lit.exporting", "typst_lit.inference",
    "typst_lit.metrics", "typst_lit.model", "typst_lit.planning", "typst_lit.reporting", "typst_lit.serving",
    "typst_lit.typesetting",
)  # fmt: skip
OLD_ADAPTER = Path(__file__).parent / "data" / "adapter_before_redesign"


def test_the_root_exports_the_public_names():
    assert set(typst_lit.__all__) == {
        "Backbone", "CompileResult", "DocumentMetric", "GeneratedDocument", "GenerationSettings", "Generator",
        "PromptTemplate", "RecordSource", "TypstCLI", "TypstDataModule", "TypstModule", "Typesetter", "UserError",
        "__version__",
    }  # fmt: skip
    for name in typst_lit.__all__:
        assert getattr(typst_lit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = typst_lit.Nonsense


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_exports_names_with_docstrings(package: str):
    module = importlib.import_module(package)
    assert module.__all__ and module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        assert name in dir(module)
        if callable(value):
            assert value.__doc__, f"{package}.{name} has no docstring"


def test_importing_the_package_loads_nothing_heavy_and_leaves_the_environment_alone():
    script = (
        "import os, sys; before = dict(os.environ); import typst_lit; "
        "heavy = {'torch', 'lightning', 'transformers', 'peft', 'datasets', 'jsonargparse'} & set(sys.modules); "
        "assert not heavy, heavy; assert dict(os.environ) == before; "
        "from typst_lit import Typesetter, UserError; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_adapter_saved_before_the_redesign_loads_and_generates():
    from typst_lit import GenerationSettings, Generator
    from typst_lit.data.prompts import ReportPrompt
    from typst_lit.exporting import mean_loss

    (pairs,) = (json.loads(path.read_text("utf-8"))[:2] for path in _samples())
    settings = GenerationSettings(max_tokens=48, temperature=0, repetition_penalty=1.0)
    generator = Generator.load(OLD_ADAPTER, use_4bit=False, compile=False, settings=settings)
    assert generator.encoder().template == ReportPrompt()
    # measured by the code that saved it
    assert mean_loss(generator.model, generator.encoder(), pairs) == pytest.approx(0.7106, abs=2e-3)
    assert generator.generate_one(pairs[0]["input"]).source.startswith('#let name = "Night Bus Survey"\n')


def _samples() -> list[Path]:
    return [Path(typst_lit.__file__).parent / "data" / "samples" / "held_out.json"]
