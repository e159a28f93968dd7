"""An adapter's files never import code: its prompt template must be registered, or named by the user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from typst_lit.data.prompts import FormatPrompt, template_from
from typst_lit.errors import UserError
from typst_lit.inference.generator import Generator
from typst_lit.model.module import TypstModule

OLD_ADAPTER = Path(__file__).parents[1] / "data" / "adapter_before_redesign"
ROOT = Path(__file__).parents[2]
MODULE = """
from pathlib import Path
from typst_lit.data.prompts import PromptTemplate
from typst_lit.data.records import Field

Path("executed").touch()

class {name}(PromptTemplate):
    fields = (Field("to"), Field("body"))

    def __init__(self, greeting):
        self.greeting = greeting

    def render(self, fields):
        return f"{{self.greeting}} {{fields['to']}},\\n{{fields['body']}}\\n"
"""
QUICK = ["--no-4bit", "--max-tokens", "2", "--no-compile"]


def save_template(adapter: Path, class_path: object, init_args: object) -> Path:
    metadata = json.loads((adapter / "typst_lit.json").read_text())
    metadata["template"] = {"class_path": class_path, "init_args": init_args}
    (adapter / "typst_lit.json").write_text(json.dumps(metadata))
    return adapter


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A working directory with records and a copy of an adapter."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD_ADAPTER, tmp_path / "adapter")
    (tmp_path / "records.json").write_text(json.dumps([{"to": "Ada", "body": "Thanks."}]))
    return tmp_path


def run_python(*args: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


GENERATE = ["generate", "--model", "adapter", "--input", "records.json", *QUICK]
PREDICT = [
    "predict", "--model.adapter_path", "adapter", "--data.predict_path", "records.json", "--model.base_model",
    "typst-nano", "--model.use_4bit", "false", "--generation.max_tokens", "2", "--run_dir", "run",
    "--trainer.accelerator", "cpu",
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (GENERATE, "--trust-template"),
        (["serve", "--model", "adapter", "--port", "0"], "--trust-template"),
        (["export", "--model", "adapter", "--to", "merged", "--output", "merged"], "--trust-template"),
        (PREDICT, "--model.trust_template"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_module_next_to_an_adapter_is_never_imported(run, workspace, command, flag, monkeypatch) -> None:
    monkeypatch.syspath_prepend("")
    save_template(workspace / "adapter", "adapter.house_style.Letter", {"greeting": "Dear"})
    (workspace / "adapter" / "house_style.py").write_text(MODULE.format(name="Letter"))
    result = run(*command)
    assert not Path("executed").exists()
    assert result.status == 1 and "Traceback" not in result.err
    assert "adapter/typst_lit.json" in result.err and f"{flag} adapter.house_style.Letter" in result.err


@pytest.mark.parametrize("module", ["this", "unittest.__main__", "idlelib.idle"])
def test_an_installed_module_is_not_imported_either(workspace, module) -> None:
    save_template(workspace / "adapter", f"{module}.Template", {})
    imported = set(sys.modules)
    with pytest.raises(UserError, match="never import code"):
        Generator.load("adapter", use_4bit=False, compile=False)
    assert module not in set(sys.modules) - imported


def test_the_module_that_the_user_names_is_imported_and_the_saved_arguments_are_used(run, workspace) -> None:
    save_template(workspace / "adapter", "my_letters.UserLetter", {"greeting": "Dear"})
    Path("my_letters.py").write_text(MODULE.format(name="UserLetter"))
    # a process of its own, as its module is in the working directory
    script = Path("typst-lit.py")
    script.write_text("import sys\nfrom typst_lit.cli import main\nsys.exit(main())\n")
    Path("bin").mkdir()
    script = script.rename("bin/typst-lit.py")  # like the installed command, which is not in the working directory
    done = run_python(script, *GENERATE, "--trust-template", "my_letters.UserLetter")
    assert done.returncode == 0, done.stderr
    (document,) = json.loads(done.stdout)
    assert document["input"] == {"to": "Ada", "body": "Thanks."} and Path("executed").exists()
    done = run_python(script, *GENERATE, "--trust-template", "my_letters.Path")
    assert done.returncode == 1 and "--trust-template: my_letters.Path is not a PromptTemplate" in done.stderr
    done = run_python(script, *GENERATE, "--trust-template", "no_such_module.Letter")
    assert done.returncode == 1 and "no_such_module.Letter can't be imported" in done.stderr


def test_modules_in_the_working_directory_do_not_replace_installed_ones(workspace) -> None:
    """The working directory may be that of an adapter that was downloaded."""
    for name in ("torch", "transformers", "liger_kernel", "apex", "tiktoken"):
        (workspace / "adapter" / f"{name}.py").write_text(f"open('executed-{name}', 'w').close()\n")
    script = workspace / "typst-lit.py"
    script.write_text("import sys\nfrom typst_lit.cli import main\nsys.exit(main())\n")
    os.chdir("adapter")
    save_template(Path(), "typst_lit.data.prompts.FormatPrompt", {"text": "{to}: {body}\n"})
    done = run_python(script, "generate", "--model", ".", "--input", "../records.json", *QUICK)
    assert done.returncode == 0, done.stderr
    assert not list(Path().glob("executed*"))


def test_a_template_that_was_imported_before_is_used_by_library_and_module(workspace) -> None:
    template = FormatPrompt("{to}: {body}\n")
    described = template.describe()
    save_template(workspace / "adapter", described["class_path"], described["init_args"])
    generator = Generator.load("adapter", use_4bit=False, compile=False)
    assert generator.encoder().template == template
    assert TypstModule("typst-nano", adapter_path="adapter").adapter_template == template


@pytest.mark.parametrize(
    ("class_path", "init_args"),
    [
        ("typst_lit.data.prompts.FormatPrompt", {"text": 5}),
        ("typst_lit.data.prompts.FormatPrompt", {"text": "{a.__class__}"}),
        ("typst_lit.data.prompts.FormatPrompt", {"text": "{a}", "numbers": 5}),
        ("typst_lit.data.prompts.FormatPrompt", {"nothing": 1}),
        ("typst_lit.data.prompts.FormatPrompt", []),
        ("typst_lit.data.prompts.FormatPrompt", None),
        ("typst_lit.data.prompts.PromptTemplate", {}),
        ("ReportPrompt; import os", {}),
        ("", {}),
        (None, {}),
        (["a.B"], {}),
        ({"a": 1}, {}),
    ],
)  # fmt: skip
def test_an_invalid_template_is_one_error_with_the_file(workspace, class_path, init_args) -> None:
    save_template(workspace / "adapter", class_path, init_args)
    with pytest.raises(UserError, match=r"adapter/typst_lit\.json: "):
        Generator.load("adapter", use_4bit=False, compile=False)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"template": []}', '{"template": "x"}', '{"sha256": 5}'])
def test_damaged_metadata_is_one_error_with_the_file(workspace, text) -> None:
    (workspace / "adapter" / "typst_lit.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter/typst_lit\.json: "):
        Generator.load("adapter", use_4bit=False, compile=False)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.E"}, "model_type": "evil"}),
        ("config.json", {"_attn_implementation_internal": "someone/kernel", "attn_implementation": "someone/kernel"}),
        ("tokenizer_config.json", {"tokenizer_class": "evil.E", "auto_map": {"AutoTokenizer": ["evil.E", None]}}),
    ],
    ids=["auto_map", "model_type", "attention", "tokenizer"],
)  # fmt: skip
def test_the_files_of_a_base_model_run_no_code(tiny_model, tmp_path, monkeypatch, file, settings) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    monkeypatch.chdir(directory)
    (directory / "evil.py").write_text("open('executed', 'w').close()\nclass E: pass\n")
    content = json.loads((directory / file).read_text())
    (directory / file).write_text(json.dumps({**content, **settings}))
    with contextlib.suppress(UserError):  # a model without such code is loaded
        Generator.load(base_model=str(directory), use_4bit=False, compile=False)
    assert not Path("executed").exists()


def test_descriptions_name_registered_classes_only() -> None:
    names: Sequence[str] = ["os.system", "builtins.print", "typst_lit.data.prompts.PromptTemplate"]
    for name in names:
        with pytest.raises(UserError):
            template_from({"class_path": name, "init_args": {}})
