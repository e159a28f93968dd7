"""A real plugin package, installed by pip, used from YAML by the bare names of its classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SAMPLES

MODULE = '''
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from torchmetrics import Metric

from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.records import Field
from typst_lit.data.sources import RecordSource, Row
from typst_lit.model.backbones import PretrainedBackbone


class LetterPrompt(PromptTemplate):
    """A letter: to whom, and what it says."""

    fields = (Field("to"), Field("body"))

    def __init__(self, greeting: str = "Dear") -> None:
        self.greeting = greeting

    def render(self, fields: Mapping[str, Any]) -> str:
        return f"{self.greeting} {fields['to']},\\n{fields['body']}\\n### Typst\\n"


class LetterSource(RecordSource):
    """A number of letters."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self) -> Iterator[Row]:
        for index in range(self.count):
            record = {"to": f"Reader {index}", "body": f"This is letter {index}."}
            yield Row(f"letter {index}", {"input": record, "output": f"= Letter {index}"})

    def fingerprint(self) -> str:
        return f"letters {self.count}"


class PrintSteps(Callback):
    """Prints one line per step."""

    def __init__(self, mark: str = "*") -> None:
        self.mark = mark

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        print(self.mark, trainer.global_step)


class MeanLength(Metric):
    """The mean number of characters of what was generated."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("characters", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, generated: list[str], references: list[str]) -> None:
        self.characters += sum(map(len, generated))
        self.count += len(generated)

    def compute(self) -> torch.Tensor:
        return self.characters / self.count


class PrintingBackbone(PretrainedBackbone):
    """Prints what it loads."""

    def load_model(self, name: str, *args: Any) -> Any:
        print("backbone loads", name)
        return super().load_model(name, *args)
'''

CONFIG = """
data:
  source: {class_path: LetterSource, init_args: {count: 6}}
  template: {class_path: LetterPrompt, init_args: {greeting: Hello}}
model:
  backbone: PrintingBackbone
  adapter:
    class_path: peft.IA3Config
    init_args: {target_modules: [k_proj, v_proj, down_proj], feedforward_modules: [down_proj]}
  metrics: {mean_length: MeanLength}
generation: {max_tokens: 5}
trainer:
  callbacks:
  - class_path: PrintSteps
    init_args: {mark: letter step}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has installed the plugin package."""
    project = tmp_path_factory.mktemp("plugin")
    (project / "typst_lit_letters.py").write_text(MODULE)
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "typst-lit-letters"\nversion = "1.0"\n'
        '[project.entry-points."typst_lit.plugins"]\nletters = "typst_lit_letters"\n'
        '[tool.setuptools]\npy-modules = ["typst_lit_letters"]\n'
    )
    target = project / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(project)]
    subprocess.run([*command, "--no-build-isolation"], check=True, capture_output=True)
    return target


def run_with(site: Path, *args: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-m", "typst_lit", *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_kind_of_plugin_is_used_from_yaml_by_its_bare_name(site, tiny_model, tmp_path) -> None:
    config = tmp_path / "letters.yaml"
    config.write_text(CONFIG)
    common = [
        "--config",
        config,
        "--model.base_model",
        tiny_model,
        "--run_dir",
        tmp_path,
        "--trainer.accelerator",
        "cpu",
    ]
    fit = run_with(site, "fit", *common, "--trainer.max_steps", 2, "--trainer.accumulate_grad_batches", 1)
    assert fit.returncode == 0, fit.stderr
    assert "letter step 1" in fit.stdout and "backbone loads" in fit.stdout
    assert json.loads((tmp_path / "adapter/best/adapter_config.json").read_text())["peft_type"] == "IA3"
    template = json.loads((tmp_path / "adapter/best/typst_lit.json").read_text())["template"]
    assert template == {"class_path": "typst_lit_letters.LetterPrompt", "init_args": {"greeting": "Hello"}}
    test = run_with(site, "test", *common, "--model.adapter_path", tmp_path)
    assert test.returncode == 0, test.stderr
    assert "test_mean_length" in test.stdout


def test_a_plugin_that_cannot_be_imported_is_named(site, tmp_path) -> None:
    broken = tmp_path / "broken"
    info = broken / "typst_lit_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: typst-lit-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[typst_lit.plugins]\nbroken = typst_lit_broken\n")
    (broken / "typst_lit_broken.py").write_text("import no_such_module\n")
    result = run_with(broken, "fit", "--data.path", "x.json")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "plugin 'broken' of the package typst-lit-broken" in result.stderr and "no_such_module" in result.stderr


def test_a_local_file_is_named_by_its_dotted_path(run, fit_args, tmp_path, monkeypatch) -> None:
    (tmp_path / "my_callbacks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    result = run(
        *fit_args, "--data.path", SAMPLES, "--trainer.max_steps", 1, "--trainer.callbacks+=my_callbacks.PrintSteps"
    )
    assert result.status == 0, result.err
    assert "* 1" in result.out
