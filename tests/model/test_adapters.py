"""Adapters that are damaged, or do not fit the base model, are reported before anything is loaded."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from typst_lit.data.prompts import ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.generator import Generator
from typst_lit.model.adapters import attach_adapter
from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.model.saving import save_weights

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(tiny_model, tmp_path) -> Path:
    backbone = PretrainedBackbone()
    base = backbone.load_model(str(tiny_model), None, False, False, torch.device("cpu"))
    model = attach_adapter(base, LoraConfig(r=4, target_modules="attention", init_lora_weights=False))
    directory = tmp_path / "adapter"
    save_weights(model, directory, backbone.load_tokenizer(str(tiny_model), None, False), ReportPrompt(), "card")
    return directory


@pytest.fixture
def loading_error(adapter, monkeypatch):
    """Returns a function that loads the adapter and returns the error message; the base model must not be loaded."""

    def load_base(*_args, **_options) -> None:
        raise AssertionError("the base model was loaded before the adapter was checked")

    def message() -> str:
        monkeypatch.setattr(PreTrainedModel, "from_pretrained", load_base)
        with pytest.raises(UserError) as raised:
            Generator.load(adapter, use_4bit=False, compile=False)
        return str(raised.value)

    return message


def test_an_intact_adapter_is_loaded_and_has_one_checksum(adapter) -> None:
    Generator.load(adapter, use_4bit=False, compile=False)
    weights = load_file(adapter / WEIGHTS)
    checksums = json.loads((adapter / "typst_lit.json").read_text())["sha256"]
    assert len(checksums) == 1 and all(value.any() for value in weights.values())


def test_a_save_that_fails_before_the_weights_are_moved_leaves_the_adapter_intact(
    adapter, tiny_model, monkeypatch
) -> None:
    backbone = PretrainedBackbone()
    base = backbone.load_model(str(tiny_model), None, False, False, torch.device("cpu"))
    model = attach_adapter(base, LoraConfig(r=4, target_modules="attention", init_lora_weights=False))
    before = (adapter / WEIGHTS).read_bytes()
    replace = Path.replace

    def fail_on_weights(self, target):
        if self.name == WEIGHTS:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_weights)
    with pytest.raises(UserError, match=r"could not be written.*intact"):
        save_weights(model, adapter, backbone.load_tokenizer(str(tiny_model), None, False), ReportPrompt(), "card")
    assert (adapter / WEIGHTS).read_bytes() == before and not list(adapter.parent.glob(".*"))
    Generator.load(adapter, use_4bit=False, compile=False)


def test_weights_cut_off_anywhere(adapter, loading_error) -> None:
    intact = (adapter / WEIGHTS).read_bytes()
    for part in range(20):
        (adapter / WEIGHTS).write_bytes(intact[: len(intact) * part // 20])
        assert f"{adapter / WEIGHTS}: is damaged" in loading_error()


def test_weights_with_one_bit_flipped_anywhere(adapter, loading_error) -> None:
    intact = (adapter / WEIGHTS).read_bytes()
    generator = random.Random(0)
    for _ in range(40):
        position = generator.randrange(len(intact))
        (adapter / WEIGHTS).write_bytes(
            intact[:position] + bytes([intact[position] ^ (1 << generator.randrange(8))]) + intact[position + 1 :]
        )
        assert f"{adapter / WEIGHTS}: is damaged" in loading_error()


@pytest.mark.parametrize("length", [2**63 - 1, 2**33, 200_000_000])
def test_a_header_that_claims_too_much(adapter, loading_error, length) -> None:
    intact = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(length.to_bytes(8, "little") + intact[8:])
    assert f"{adapter / WEIGHTS}: is damaged" in loading_error()


def rewrite(adapter: Path, change) -> None:
    weights = load_file(adapter / WEIGHTS)
    change(weights)
    save_file(weights, adapter / WEIGHTS)
    (adapter / "typst_lit.json").unlink()  # as of an adapter that another tool saved


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(min(weights)),
        lambda weights: weights.update({min(weights): torch.zeros(3, 5)}),
        lambda weights: weights.update({min(weights): weights[min(weights)].T.contiguous()}),
        lambda weights: weights.update({min(weights).replace("layers.0", "layers.9"): torch.zeros(4, 8)}),
        lambda weights: weights.clear(),
    ],
    ids=["missing", "other shape", "transposed", "too many", "empty"],
)  # fmt: skip
def test_weights_that_do_not_fit(adapter, loading_error, change) -> None:
    rewrite(adapter, change)
    message = loading_error()
    assert str(adapter) in message and "does not fit the base model" in message and "lora_A" in message


def test_an_adapter_of_another_base_model(adapter, loading_error, tmp_path) -> None:
    from benchmarks.nano.tiny_model import make_tiny_model

    other = make_tiny_model(tmp_path / "larger", ["other text"], vocab_size=512, hidden_size=128)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    assert "does not fit the base model" in loading_error() and str(other) in loading_error()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"peft_type": "NONE"}', '{"peft_type": 7}'])
def test_an_invalid_configuration(adapter, tiny_model, text) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(adapter))):
        Generator.load(adapter, str(tiny_model), use_4bit=False, compile=False)


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_pickled_weights_are_never_loaded_and_can_be_converted(adapter, tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Payload()}, adapter / "adapter_model.bin")
    shutil.move(adapter / WEIGHTS, tmp_path / "kept")
    with pytest.raises(UserError, match="safetensors only") as raised:
        Generator.load(adapter, use_4bit=False, compile=False)
    assert not Path("executed").exists()
    command = str(raised.value).splitlines()[-1].strip()
    assert command.startswith("python -c ")
    command = command.replace("python", sys.executable, 1)
    failed = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert failed.returncode and "weights_only" in failed.stderr and not Path("executed").exists()
    torch.save(load_file(tmp_path / "kept"), adapter / "adapter_model.bin")
    assert subprocess.run(command, shell=True).returncode == 0
    (adapter / "typst_lit.json").unlink()
    Generator.load(adapter, use_4bit=False, compile=False)
