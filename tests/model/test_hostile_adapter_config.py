"""Hostile values in an adapter's ``adapter_config.json`` are refused in time, with the file and the field."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig
from transformers import PretrainedConfig

from typst_lit.data.prompts import ReportPrompt
from typst_lit.errors import UserError
from typst_lit.inference.model_spec import resolve_model
from typst_lit.model.adapters import attach_adapter, check_adapter, load_adapter
from typst_lit.model.backbones import PretrainedBackbone
from typst_lit.model.locations import CONFIG_FILE
from typst_lit.model.saving import save_weights

ROOT = Path(__file__).parents[2]
OLD_ADAPTER = ROOT / "tests" / "data" / "adapter_before_redesign"
SLOW_REGEX = "(model\\.|layers\\.|[a-z0-9_.])*(([a-z._0-9]+)+)+!"


@pytest.fixture(scope="module")
def architecture() -> PretrainedConfig:
    return PretrainedBackbone().load_config("typst-nano", None, False)


@pytest.fixture
def adapter(tmp_path) -> Path:
    shutil.copytree(OLD_ADAPTER, tmp_path / "adapter")
    return tmp_path / "adapter"


def change(adapter: Path, **settings: object) -> None:
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps({**config, **settings}))


def test_slow_regular_expressions_are_refused_in_time(adapter, tmp_path) -> None:
    variants = [
        {"target_modules": SLOW_REGEX},
        {"exclude_modules": SLOW_REGEX},
        {"layers_pattern": SLOW_REGEX, "layers_to_transform": [0]},
        {"layers_pattern": [SLOW_REGEX], "layers_to_transform": [0]},
        {"rank_pattern": {SLOW_REGEX: 4}},
        {"alpha_pattern": {SLOW_REGEX: 4}},
        {"modules_to_save": [SLOW_REGEX]},
    ]
    directories = []
    for number, settings in enumerate(variants):
        directories.append(tmp_path / f"adapter-{number}")
        shutil.copytree(adapter, directories[-1])
        change(directories[-1], **settings)
    program = (
        "import sys\nfrom typst_lit.errors import UserError\n"
        "from typst_lit.inference.model_spec import resolve_model\n"
        "from typst_lit.inference.loading import validate_model\n"
        "for directory in sys.argv[1:]:\n"
        "    try: validate_model(resolve_model(directory))\n    except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, directories)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    for directory, settings in zip(directories, variants, strict=True):
        field = next(iter(settings))
        assert f"{directory / CONFIG_FILE}: field '{field}' has a regular expression" in done.stdout, done.stderr


def test_generate_refuses_a_regular_expression_with_the_names_to_write(run, adapter, tmp_path) -> None:
    change(adapter, target_modules=".*(q|v)_proj")
    (tmp_path / "records.json").write_text(
        json.dumps(
            {"starting_page": 1, "academic_year": "a", "department": "b", "project_title": "c", "contents_txt": "d"}
        )
    )
    result = run("generate", "--model", adapter, "--input", tmp_path / "records.json", "--no-4bit")
    assert result.status == 1 and "Traceback" not in result.err
    assert 'Write the names as a list: "target_modules": ["q_proj", "v_proj"]' in result.err


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_replication": [[0, 1_000_000]]},
        {"layer_replication": [[0, 1], [0, 1]]},
        {"megatron_config": {"a": 1}, "megatron_core": "os"},
        {"peft_type": "XLORA", "adapters": {"0": "someone/adapter"}},
        {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "someone/tokenizer"},
        {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 10**7},
        {"r": "16"},
        {"r": 1e30},
        {"r": -1},
        {"r": 10**9},
        {"r": [16]},
        {"lora_alpha": "x"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400},
        {"lora_dropout": {}},
        {"bias": "junk"},
        {"target_modules": 5},
        {"target_modules": {"q_proj": 1.5}},
        {"target_modules": [["q_proj"]]},
        {"target_modules": [f"name{index}" for index in range(5000)]},
        {"rank_pattern": {f"name{index}": 2 for index in range(5000)}},
        {"rank_pattern": 5},
        {"rank_pattern": {"q_proj": "x"}},
        {"init_lora_weights": "pissa_niter_1000000000"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 10**9}},
        {"task_type": "JUNK"},
        {"peft_type": ["LORA"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_value_is_one_error_and_the_architecture_is_not_changed(adapter, architecture, settings) -> None:
    change(adapter, **settings)
    before = architecture.to_json_string()
    with pytest.raises(UserError, match=str(adapter)):
        check_adapter(adapter, "typst-nano", architecture)
    assert architecture.to_json_string() == before


@pytest.mark.parametrize("text", ["[" * 100_000, '{"r": ' + "1" * 5000 + "}", "{}" + " " * (2 << 20)])
def test_a_file_that_python_cannot_read_is_one_error(adapter, architecture, text) -> None:
    (adapter / CONFIG_FILE).write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        check_adapter(adapter, "typst-nano", architecture)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"^model.layers.0.self_attn.q_proj": 4}),
        LoraConfig(r=2, target_modules="all-linear", use_dora=True),
        LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="layers"),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        PromptTuningConfig(num_virtual_tokens=4),
    ],
    ids=["rank pattern", "all-linear", "layers", "IA3", "prompt tuning"],
)  # fmt: skip
def test_what_peft_saves_is_loaded(config, architecture, tmp_path) -> None:
    backbone = PretrainedBackbone()
    base = [backbone.load_model("typst-nano", None, False, False, torch.device("cpu")) for _ in range(2)]
    model = attach_adapter(base[0], config)
    save_weights(model, tmp_path / "adapter", backbone.load_tokenizer("typst-nano", None, False), ReportPrompt(), "")
    check_adapter(tmp_path / "adapter", "typst-nano", architecture)
    assert load_adapter(base[1], tmp_path / "adapter", trainable=False).active_peft_config.peft_type == config.peft_type


def test_the_log_says_which_repository_the_adapter_makes_us_download(adapter, caplog) -> None:
    change(adapter, base_model_name_or_path="someone/model")
    with caplog.at_level("INFO", "typst_lit"):
        resolve_model(adapter)
    assert f"{adapter / CONFIG_FILE} names the base model someone/model" in caplog.text
    assert "it is downloaded from https://huggingface.co/someone/model" in caplog.text
    assert "`model.base_model` chooses another one" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "typst_lit"):
        resolve_model(adapter, "typst-nano")
    assert "downloaded" not in caplog.text


@pytest.mark.parametrize("name", [5, ["a/b"], {"a": "b"}, ""])
def test_a_base_model_that_is_not_a_name(adapter, name) -> None:
    change(adapter, base_model_name_or_path=name)
    with pytest.raises(UserError, match="does not name its base model"):
        resolve_model(adapter)
