"""The configurations: each runs, by the command in its head, on a tiny model."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.conftest import SAMPLES

PRETRAINING = Path("benchmarks/nano/pretrain.yaml")
CONFIGS = [*sorted(Path("configs").glob("*.yaml")), PRETRAINING]


def head_command(config: Path) -> list[str]:
    """Returns the command in the head comment of a config, without the program's name."""
    (command,) = re.findall(r"^#\s+typst-lit (.*)$", config.read_text("utf-8"), re.MULTILINE)
    return shlex.split(command)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_command_in_its_head_runs(run, tiny_model, tmp_path, config) -> None:
    command = [SAMPLES if word == "pairs.json" else word for word in head_command(config)]
    assert (config.stem if config.parent.name == "configs" else str(config)) in command
    result = run(
        *command, "--model.base_model", tiny_model, "--run_dir", tmp_path, "--trainer.max_steps", 1,
        "--trainer.accelerator", "cpu", "--generation.max_tokens", 20,
        *(["--data.source.init_args.count", 40] if config == PRETRAINING else []),
    )  # fmt: skip
    assert result.status == 0, result.err
    weights = "model/best/model" if config == PRETRAINING else "adapter/best/adapter_model"
    assert (tmp_path / f"{weights}.safetensors").is_file()


def test_configs_lists_the_packaged_ones_and_prints_one(run) -> None:
    listed = run("configs")
    assert listed.status == 0
    lines = dict(line.split("  ", 1) for line in listed.out.splitlines())
    assert set(lines) >= {"demo", "colab_t4"} and "T4 (15 GB)" in lines["colab_t4"]
    assert run("configs", "demo").out == Path("configs/demo.yaml").read_text("utf-8")
    unknown = run("configs", "colab")
    assert unknown.status == 1 and "colab_t4" in unknown.err


@pytest.mark.parametrize("name", ["fast", "fast.yaml", "configs/fast.yaml"])
def test_a_packaged_configuration_is_found_by_its_name_in_any_directory(run, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("fit", "--config", name, "--data.path", "none.json")
    assert result.status == 1 and "none.json" in result.err and "configuration" not in result.err
    (tmp_path / "fast.yaml").write_text("model: {learning_rate: fast}")
    own = run("fit", "--config=fast.yaml")
    assert own.status == 2 and "model.learning_rate" in own.err


def test_an_unknown_configuration_is_an_error(run, tmp_path) -> None:
    result = run("fit", "--config", "colab_t5")
    assert result.status == 1 and "no configuration 'colab_t5'. Known: colab_t4" in result.err
    result = run("fit", "--config", tmp_path / "none.yaml")
    assert result.status == 1 and "none.yaml does not exist" in result.err


def test_the_wheel_has_every_package_and_the_configurations() -> None:
    from setuptools import find_packages

    config = ConfigParser()
    config.read("setup.cfg")
    packages = set(config["options"]["packages"].split())
    assert packages == {*find_packages(include=["typst_lit*"]), "typst_lit.configs"}
    assert config["options.package_data"]["typst_lit.configs"] == "*.yaml"


def test_the_four_scenarios_have_the_known_values(tiny_model) -> None:
    import yaml

    def values(name):
        config = yaml.safe_load(Path(f"configs/{name}.yaml").read_text("utf-8"))
        adapter = config["model"]["adapter"]["init_args"]
        return (
            adapter["r"], adapter["lora_alpha"], adapter["target_modules"], config["data"]["batch_size"],
            config["trainer"]["accumulate_grad_batches"], config["model"]["use_4bit"],
        )  # fmt: skip

    assert values("colab_t4") == (8, 16, "attention", 2, 8, True)
    assert values("v100") == (16, 32, "attention", 4, 4, True)
    assert values("a100") == (64, 128, "attention+mlp", 8, 4, False)
    assert values("fast") == (8, 16, "attention", 4, 2, True)


def test_an_overlay_keeps_the_core_callbacks_and_what_it_does_not_name(run, tiny_model, tmp_path) -> None:
    import yaml

    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("trainer:\n  callbacks:\n  - class_path: lightning.pytorch.callbacks.ModelSummary\n")
    result = run(
        "fit", "--config", "configs/colab_t4.yaml", "--config", overlay, "--data.path", SAMPLES, "--model.base_model",
        tiny_model, "--run_dir", tmp_path, "--trainer.max_steps", 1, "--trainer.accelerator", "cpu",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert (tmp_path / "checkpoints/last.ckpt").is_file() and "Memory, peak" in result.err
    saved = yaml.safe_load(next(tmp_path.glob("tensorboard/*/config.yaml")).read_text("utf-8"))
    assert saved["model"]["adapter"]["init_args"]["r"] == 8 and saved["model"]["warmup_steps"] == 100


def test_the_known_defaults(run, tiny_model, tmp_path) -> None:
    import yaml

    result = run(
        "fit", "--data.path", SAMPLES, "--model.base_model", tiny_model, "--run_dir", tmp_path,
        "--trainer.max_steps", 1, "--trainer.accelerator", "cpu",
    )  # fmt: skip
    assert result.status == 0, result.err
    saved = yaml.safe_load(next(tmp_path.glob("tensorboard/*/config.yaml")).read_text("utf-8"))
    adapter = saved["model"]["adapter"]["init_args"]
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (16, 32, 0.05)
    assert adapter["target_modules"] == "attention"
    assert (saved["trainer"]["max_epochs"], saved["trainer"]["accumulate_grad_batches"]) == (3, 4)
    assert (saved["data"]["batch_size"], saved["data"]["max_length"], saved["data"]["max_length_cap"]) == (
        4,
        "auto",
        8192,
    )
    model = saved["model"]
    assert (model["learning_rate"], model["weight_decay"], model["use_4bit"]) == (2e-4, 0.01, True)
    assert saved["model"]["warmup_steps"] == 100
    assert set(saved["generation"].values()) == {None}  # they depend on the adapter
