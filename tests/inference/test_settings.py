"""Generation settings: a flag or an argument, then what the adapter's run was configured with, then the default."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from typst_lit import TypstCLI
from typst_lit.callbacks.generation import build_generator
from typst_lit.errors import UserError
from typst_lit.inference import inference_from_dict, load_model_and_tokenizer
from typst_lit.inference.generator import Generator
from typst_lit.inference.model_spec import resolve_model
from typst_lit.inference.settings import DEFAULTS, GenerationSettings
from typst_lit.model.locations import adapter_metadata

CLASSIC = {"temperature": 0.7, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1, "max_tokens": 2048}


@pytest.fixture
def stored(able_adapter, tmp_path) -> Path:
    """An adapter whose run was configured with three generation settings."""
    directory = tmp_path / "stored"
    shutil.copytree(able_adapter / "adapter" / "best", directory)
    store(directory, {"temperature": 0.3, "seed": 7, "max_tokens": 5})
    return directory


def store(directory: Path, generation: Any) -> None:
    file = directory / "typst_lit.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "generation": generation}))


def used(output: Path) -> dict[str, Any]:
    """Returns the settings with which a file of results was generated."""
    provenance = json.loads(output.with_suffix(".run.json").read_text())
    return {name: provenance[f"generation.{name}"] for name in DEFAULTS}


def test_defaults_are_greedy_without_a_penalty() -> None:
    settings = GenerationSettings()
    assert settings.is_greedy and settings.values() == dict(DEFAULTS) and not settings.explicit
    assert (settings.temperature, settings.top_p, settings.top_k, settings.repetition_penalty) == (0, 0.95, 50, 1)


def test_classic_sets_five_values_and_each_one_given_wins() -> None:
    assert GenerationSettings(sampling="classic").explicit_values == CLASSIC
    mixed = GenerationSettings(sampling="classic", top_k=7, max_tokens=90)
    assert mixed.explicit_values == {**CLASSIC, "top_k": 7, "max_tokens": 90}
    stored = GenerationSettings(temperature=0.9, seed=4)
    assert GenerationSettings(sampling="greedy").with_defaults(stored).explicit_values == {
        "temperature": 0, "repetition_penalty": 1, "seed": 4,
    }  # fmt: skip


def test_a_value_equal_to_the_default_wins_over_a_stored_one_if_it_is_given() -> None:
    stored = GenerationSettings(temperature=0.9, valid_syntax=False)
    settings = GenerationSettings(temperature=0, valid_syntax=True).with_defaults(stored)
    assert settings.temperature == 0 and settings.valid_syntax is True
    assert GenerationSettings().with_defaults(stored).valid_syntax is False


def test_a_run_stores_what_its_configuration_gives_and_generate_uses_it(run, fit_args, tmp_path, pairs) -> None:
    config, output, records = (tmp_path / name for name in ("run.yaml", "documents.json", "records.json"))
    config.write_text("generation: {sampling: classic, max_tokens: 6}")
    assert run("fit", "--config", config, *fit_args[1:], "--trainer.max_steps", 1, "--generation.seed", 3).status == 0
    directory = tmp_path / "run" / "adapter" / "best"
    expected = {**CLASSIC, "max_tokens": 6, "seed": 3}
    assert adapter_metadata(directory).generation == expected
    records.write_text(json.dumps(pairs[0]["input"]))
    command = ["generate", "--model", tmp_path / "run", "--input", records, "--output", output, "--overwrite"]
    for flags, changed in (
        ([], {}),
        (["--temperature", 0, "--no-valid-syntax"], {"temperature": 0, "valid_syntax": False}),
        (["--sampling", "greedy", "--max-tokens", 5], {"temperature": 0, "repetition_penalty": 1, "max_tokens": 5}),
    ):
        result = run(*command, *flags)
        assert result.status == 0, result.err
        assert used(output) == {**DEFAULTS, **expected, **changed}
    refused = run(*command[:-1])
    assert refused.status == 1 and "generation.max_tokens" in refused.err and "generation.temperature" in refused.err


def test_the_token_limit_follows_from_the_longest_completion(run, fit_args, tmp_path, pairs) -> None:
    cli = TypstCLI("fit", [*fit_args[1:], "--trainer.max_steps", "1"])
    cli.run()
    longest = cli.datamodule.max_completion_tokens
    limit = math.ceil(1.25 * longest)
    in_evaluation = build_generator(cli.model, cli.datamodule, GenerationSettings(seed=2)).settings
    assert in_evaluation.values() == {**DEFAULTS, "max_tokens": limit, "seed": 2}
    output = tmp_path / "documents.json"
    common = ["--model.base_model", fit_args[4], "--trainer.accelerator", "cpu", "--run_dir", tmp_path / "run"]
    records = tmp_path / "records.json"
    records.write_text(json.dumps(pairs[0]["input"]))
    predicted = run(
        "predict", *common, "--model.adapter_path", tmp_path / "run", "--data.predict_path", records,
        "--predict.output", output,
    )  # fmt: skip
    assert predicted.status == 0, predicted.err
    assert used(output)["max_tokens"] == limit
    # generate has the same settings, so that nothing is left for it to do
    again = run("generate", "--model", tmp_path / "run", "--input", records, "--output", output)
    assert again.status == 0 and "record 0" not in again.err, again.err


def test_training_further_keeps_the_settings_of_the_adapter(run, fit_args, tmp_path) -> None:
    assert run(*fit_args, "--trainer.max_steps", 1, "--generation.top_k", 9).status == 0
    more = [*fit_args, "--run_dir", tmp_path / "more", "--model.adapter_path", tmp_path / "run", "--generation.seed", 2]
    result = run(*more, "--trainer.max_steps", 1)
    assert result.status == 0, result.err
    assert adapter_metadata(tmp_path / "more" / "adapter" / "best").generation == {"top_k": 9, "seed": 2}


def test_each_adapter_has_its_own_settings(stored, able_adapter, able_pairs) -> None:
    settings = GenerationSettings(seed=1, top_k=3)
    generator = Generator.load(
        {"stored": stored, "plain": able_adapter}, use_4bit=False, compile=False, settings=settings
    )
    assert generator.settings == generator.settings_for("stored")
    assert generator.settings.explicit_values == {"max_tokens": 5, "temperature": 0.3, "seed": 1, "top_k": 3}
    assert generator.settings_for("plain").is_greedy and generator.settings_for("plain").max_tokens > 5
    assert generator.provenance("stored")["generation.temperature"] == 0.3
    record = able_pairs[0]["input"]
    assert generator.attempts(record, "stored", GenerationSettings(max_tokens=4)).settings.explicit_values == {
        "max_tokens": 4, "temperature": 0.3, "seed": 1, "top_k": 3,
    }  # fmt: skip
    assert generator.generate_one(record).tokens == 5


def test_the_functions_of_the_guide_use_the_settings_of_the_adapter(stored, able_pairs) -> None:
    model, tokenizer = load_model_and_tokenizer(adapter_path=stored, use_4bit=False)
    assert (
        len(tokenizer(inference_from_dict(model, tokenizer, able_pairs[0]["input"]))["input_ids"]) <= 9
    )  # 5, and what closes the rest


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"temperature": 3}, "temperature`: must be from 0 to 2"),
        ({"temperature": "hot"}, "temperature`: has the wrong type"),
        ({"max_tokens": True}, "max_tokens`: has the wrong type"),
        ({"valid_syntax": 1}, "valid_syntax`: has the wrong type"),
        ({"top_p": None}, "top_p`: has the wrong type"),
    ],
)
def test_damaged_settings_are_errors_that_name_the_file(stored, generation, message) -> None:
    store(stored, generation)
    with pytest.raises(UserError, match=r"typst_lit\.json: is damaged") as raised:
        resolve_model(stored)
    assert message in str(raised.value)


def test_settings_of_a_newer_version_have_no_effect(stored) -> None:
    store(stored, {"beam_width": 4, "top_k": 8})
    assert resolve_model(stored).settings().top_k == 8


def test_exports_sample_as_the_adapter_does(run, stored, able_adapter, tmp_path) -> None:
    for model, do_sample in ((stored, True), (able_adapter, False)):
        merged, ollama = tmp_path / f"merged-{do_sample}", tmp_path / f"ollama-{do_sample}"
        result = run("export", "--model", model, "--to", "merged", "--output", merged, "--no-check")
        assert result.status == 0, result.err
        config = json.loads((merged / "generation_config.json").read_text())
        assert (config["do_sample"], config.get("temperature")) == (do_sample, 0.3 if do_sample else None)
        result = run("export", "--model", model, "--to", "ollama", "--output", ollama, "--no-check")
        assert result.status == 0, result.err
        lines = (ollama / "Modelfile").read_text().splitlines()
        assert f"PARAMETER temperature {0.3 if do_sample else 0.0}" in lines
        limit = resolve_model(base_model=str(merged)).settings().max_tokens
        assert f"PARAMETER num_predict {limit}" in lines and (limit == 5) is do_sample
