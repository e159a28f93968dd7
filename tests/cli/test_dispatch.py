from __future__ import annotations

import subprocess
import sys


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


def test_unknown_command_names_the_known_ones(run) -> None:
    result = run("fti")
    assert result.status == 2
    assert "no command 'fti'" in result.err and "fit" in result.err


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


def test_a_folder_that_cannot_be_written_is_one_message(run, tmp_path) -> None:
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
    assert result.status == 1 and "bash" in result.err
