"""Settings in messages become flags of the command that runs."""

from __future__ import annotations

import logging

import pytest

from typst_lit.cli import dispatch, generate
from typst_lit.cli.messages import Flags
from typst_lit.errors import UserError

FIT = Flags(
    {name: f"--{name}" for name in ("data.max_length", "data.batch_size", "model.adapter", "run_dir", "ckpt_path")}
)


@pytest.mark.parametrize(
    ("message", "translated"),
    [
        ("Raise `data.max_length`.", "Raise --data.max_length."),
        ("Use `data.max_length=4096`.", "Use --data.max_length 4096."),
        ("`data.batch_size=1` `ckpt_path=last`", "--data.batch_size 1 --ckpt_path last"),
        ("`model.adapter.r=8`, `model.adapter.target_modules=[q_proj, v_proj]`",
         "--model.adapter.r 8, --model.adapter.target_modules '[q_proj, v_proj]'"),
        ("`run_dir=my runs`", "--run_dir 'my runs'"),
        ("`data.no_such_setting`, `typst-lit plan`, `isinstance()`",
         "`data.no_such_setting`, `typst-lit plan`, `isinstance()`"),
    ],
)  # fmt: skip
def test_lightning_commands_have_dotted_flags(message, translated) -> None:
    assert FIT.translate(message) == translated


@pytest.mark.parametrize(
    ("message", "kebab_case", "snake_case"),
    [
        ("`model.use_4bit=false`", "--no-4bit", "--no-4bit"),
        ("`overwrite=true`", "--overwrite", "--overwrite"),
        ("`model.base_model`: not found.", "--base-model: not found.", "--base_model: not found."),
        ("`generation.max_tokens=4096`", "--max-tokens 4096", "--max_tokens 4096"),
        ("`model.adapter_path=DIRECTORY`", "--model DIRECTORY", "--model DIRECTORY"),
        ("`typesetting.font_paths`", "--typesetting.font_paths", "--typesetting.font_paths"),
        ("`data.max_length`, `model.adapter.r`", "`data.max_length`, `model.adapter.r`",
         "`data.max_length`, `model.adapter.r`"),
    ],
)  # fmt: skip
def test_small_commands_have_flags_without_groups(message, kebab_case, snake_case) -> None:
    for args, translated in ((["--top-p", "1"], kebab_case), (["--top_p=1"], snake_case)):
        flags = Flags.from_parser(generate.generate.parser(), args, has_groups=False)
        assert flags.translate(message) == translated


@pytest.fixture
def failing_command(monkeypatch):
    """Makes a command fail with a `UserError`, after a warning of the same setting."""

    def replace(command):
        from typst_lit.cli import fit, model_arguments

        def fail(*args: object) -> None:
            logging.getLogger("typst_lit.model").warning("Not enough `generation.max_tokens`.")
            raise UserError("needs a GPU.", setting="model.use_4bit", hint="Use `model.use_4bit=false`.")

        if command == "fit":
            monkeypatch.setattr(fit.TypstCLI, "before_instantiate_classes", fail)
        else:
            monkeypatch.setattr(model_arguments.ModelArguments, "validate", fail)

    return replace


def test_errors_and_log_records_of_fit_name_its_flags(run, fit_args, failing_command) -> None:
    failing_command("fit")
    result = run(*fit_args)
    assert result.status == 1
    assert "error: --model.use_4bit: needs a GPU. Use --model.use_4bit false." in result.err


def test_errors_and_log_records_of_generate_name_its_flags(run, failing_command, tmp_path) -> None:
    (tmp_path / "records.json").write_text("[]")
    failing_command("generate")
    result = run("generate", "--input", tmp_path / "records.json")
    assert result.status == 1 and "warning: Not enough --max-tokens." in result.err
    assert "error: --4bit: needs a GPU. Use --no-4bit." in result.err


def test_settings_stay_where_no_command_runs_yet(run, monkeypatch) -> None:
    def fail(args: object) -> None:
        raise UserError("is wrong.", setting="model.use_4bit")

    monkeypatch.setattr(dispatch, "load_command", lambda name: fail)
    assert "error: `model.use_4bit`: is wrong." in run("doctor").err
