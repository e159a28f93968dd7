"""The directory that a run exports, and its model card."""

from __future__ import annotations

import contextlib
import io
import re

from typst_lit.inference import GenerationSettings, Generator


def test_the_model_card_has_code_that_runs(run, fit_args, tmp_path, pairs, monkeypatch) -> None:
    assert run(*fit_args, "--trainer.max_steps", 1).status == 0
    directory = tmp_path / "run" / "adapter"
    card = (directory / "best" / "README.md").read_text("utf-8")
    assert "typst-lit generate --model best --input records.json" in card and "4-bit NF4" in card
    public_api, plain_peft = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(directory)
    names = {"record": pairs[0]["input"]}
    load = Generator.load

    def load_for_a_short_document(*args, **kwargs):
        return load(*args, **kwargs, settings=GenerationSettings(max_tokens=5))

    monkeypatch.setattr(Generator, "load", load_for_a_short_document)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(public_api, names)
        exec(plain_peft, names)
    assert names["generator"].adapters == ["default"] and type(names["model"]).__name__.startswith("Peft")
