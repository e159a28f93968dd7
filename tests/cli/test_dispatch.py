from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from typst_lit.cli.dispatch import COMMANDS, summary


def test_help_and_version_load_nothing_heavy() -> None:
    program = (
        "import sys\nfrom typst_lit.cli import main\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0\n"
        "heavy = {'torch', 'lightning', 'transformers', 'datasets', 'numpy', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fit " in done.stdout and "typst-lit 0." in done.stdout


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "typst_lit", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("typst-lit ")


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "typst_lit", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


def test_every_command_has_a_summary_and_a_help(run) -> None:
    for name in COMMANDS:
        assert summary(name), name
        result = run(name, "--help")
        assert result.status == 0 and result.out.startswith(f"usage: typst-lit {name}"), name


def test_an_unknown_command_gets_the_nearest_known_one(run) -> None:
    result = run("fti")
    assert result.status == 2
    assert "no command 'fti'. Did you mean fit?" in result.err and "generate" in result.err


def test_unknown_option_fails_without_a_traceback(run) -> None:
    result = run("fit", "--data.batchsize", 3)
    assert result.status == 2
    assert "data.batchsize" in result.err and "Traceback" not in result.err


def test_an_unknown_option_suggests_the_nearest_and_prints_no_usage_page(run, tmp_path) -> None:
    result = run("fit", "--data.batchsize", 3)
    assert "--data.batch_size" in result.err and len(result.err.splitlines()) < 8
    config = tmp_path / "bad.yaml"
    config.write_text("data: {batchsize: 3}")
    result = run("fit", "--config", config)
    assert result.status == 2 and "batchsize" in result.err and len(result.err.splitlines()) < 12


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--trainer.default_root_dir", "run"], "Use --run_dir."),
        (["--trainer.default_root_dir=run"], "Use --run_dir."),
        (["--optimizer", "SGD"], "--model.optimizer"),
        (["--optimizer.lr", "0.1"], "--model.learning_rate"),
        (["--lora_r", "8"], "Use --model.adapter.r."),
        (["--batch_size", "8"], "Did you mean --data.batch_size"),
        (["--learning-rate", "1e-4"], "Did you mean --model.learning_rate"),
    ],
)  # fmt: skip
def test_flags_of_other_programs_are_refused_with_the_flag_to_use(run, flags, hint) -> None:
    result = run("fit", *flags)
    assert result.status == 2 and hint in result.err and len(result.err.splitlines()) < 5


def test_a_directory_that_cannot_be_written_is_one_message(run, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    result = run(
        "predict", "--data.predict_path", tmp_path / "new.json", "--run_dir", tmp_path / "file" / "run",
        "--model.base_model", "/nowhere",
    )  # fmt: skip
    assert result.status == 1 and "Traceback" not in result.err


def test_completion_script_knows_commands_and_options(run, tmp_path) -> None:
    script = tmp_path / "completion.sh"
    result = run("completion", "bash")
    assert result.status == 0
    script.write_text(result.out)
    ask = (
        f"source {script}; f=$(complete -p typst-lit | sed 's/.*-F \\([^ ]*\\).*/\\1/');"
        "COMP_WORDS=(typst-lit fit --data.b); COMP_CWORD=2; $f typst-lit --data.b fit; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--data.batch_size"]


def test_completion_of_an_unknown_shell(run) -> None:
    result = run("completion", "cmd")
    assert result.status == 2 and "bash" in result.err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model: {learning_rate: null}", "--model.learning_rate: Expected a float. Got value: null"),
        ("data: null", "must not be null"),
        ("trainer: null", "must not be null"),
    ],
)
def test_null_is_an_error_for_a_setting_that_needs_a_value(run, tmp_path, config, message) -> None:
    (tmp_path / "null.yaml").write_text(config)
    result = run("fit", "--config", tmp_path / "null.yaml")
    assert result.status == 2 and message in result.err and len(result.err.splitlines()) < 4


def test_the_help_of_fit_is_short_and_lists_everything_on_request(run) -> None:
    short = run("fit", "--help")
    assert short.status == 0 and len(short.out.splitlines()) <= 100
    for flag in ("--data.path", "--model.base_model", "--model.adapter.r", "--model.warmup_steps", "--ckpt_path"):
        assert flag in short.out
    for flags in (["--help", "all"], ["--help-all"]):
        full = run("fit", *flags)
        assert full.status == 0 and "--trainer.limit_train_batches" in full.out and "--watchdog." in full.out


@pytest.mark.parametrize(("flag", "value"), [("--max-tokens", "0"), ("--max_tokens", "0"), ("--max_tokens=0", None)])
def test_small_commands_accept_both_spellings_and_answer_in_the_one_that_was_typed(run, flag, value) -> None:
    result = run("generate", "--input", "none.json", flag, *([value] if value else []))
    assert result.status == 1 and f"{flag.partition('=')[0]}: must be 1 or more" in result.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", ["configs", "--help", "configs --help"])
def test_output_that_nobody_reads_ends_a_command_quietly(args, unbuffered) -> None:
    program = f"{shlex.quote(sys.executable)} -m typst_lit {args}"
    # `true` reads nothing: the pipe is closed before the command writes
    command = f"{{ sleep 0.3; {program}; echo status $? >&2; }} | true"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == f"status {128 + signal.SIGPIPE}\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("trainer: {default_root_dir: elsewhere}", "there is no setting 'trainer.default_root_dir'. Use --run_dir."),
        ("trainer.default_root_dir: elsewhere", "there is no setting 'trainer.default_root_dir'. Use --run_dir."),
        ("lora_r: 8", "there is no setting 'lora_r'. Use --model.adapter.r."),
    ],
)
def test_settings_of_other_programs_in_a_configuration_are_refused_with_the_setting_to_use(
    run, tmp_path, config, message
) -> None:
    (tmp_path / "other.yaml").write_text(config)
    for flags in (["--config", tmp_path / "other.yaml"], [f"--config={tmp_path / 'other.yaml'}"]):
        result = run("fit", *flags)
        assert result.status == 2 and f"{tmp_path / 'other.yaml'}: {message}" in result.err
