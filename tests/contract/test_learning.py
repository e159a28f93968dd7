"""The contract of the demo's samples: what it says, and which texts it lets pass."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from typst_lit.contract.learning import TrainingPair, learn_contract
from typst_lit.contract.record_text import RecordText
from typst_lit.contract.text_contract import TextContract
from typst_lit.contract.text_guard import TextGuard, TextState
from typst_lit.typesetting.syntax import START, read_pieces
from typst_lit.typesetting.typesetter import Typesetter

SAMPLES = files("typst_lit") / "data/samples"
BODY = "contents_txt"


def pairs(name: str) -> list[dict[str, Any]]:
    return json.loads((SAMPLES / name).read_text("utf-8"))


def learn(samples: list[dict[str, Any]]) -> TextContract:
    with Typesetter() as typesetter:
        results = list(typesetter.compile_many(pair["output"] for pair in samples))
    contract = learn_contract(
        [TrainingPair(pair["input"], BODY, pair["output"], x) for pair, x in zip(samples, results, strict=True)]
    )
    assert contract is not None
    return contract


@pytest.fixture(scope="module")
def contract() -> TextContract:
    return learn(pairs("reports.json"))


def accepts(contract: TextContract, record: dict[str, Any], source: str) -> bool:
    """Returns whether a source keeps to a contract up to its end."""
    guard = TextGuard(contract, RecordText(record, BODY, contract.style_words))
    read = read_pieces(START, source)
    assert read is not None
    state = guard.read(TextState(), read[1])
    return state is not None and not guard.missing_lines(state)


def test_the_contract_says_what_holds_in_the_samples(contract):
    assert contract.num_pairs == 45
    assert contract.ordered and contract.complete and contract.copied and contract.exact
    assert contract.repeated_lines == 2  # on the title page
    assert contract.min_fidelity == 1.0
    assert {"page", "figure"} <= set(contract.style_words)
    sources = dict(contract.contexts)
    assert sources["project"] == ("project_title",)
    assert sources["heading"] == ("body",)
    assert not any("free" in names for names in sources.values())
    assert TextContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_outputs_of_other_projects_keep_to_it(contract):
    held_out = pairs("held_out.json")
    assert [accepts(contract, pair["input"], pair["output"]) for pair in held_out] == [True] * len(held_out)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("The survey ran for six weeks", "The survey ran for seven weeks"),  # an invented word
        ("at ten, and", "at ten; and"),  # punctuation
        ('#let office = "School', '#let office = "Night'),  # another field
        ("in rain and in snow.", "in rain."),  # a line that ends early
        ("\n\nThe survey ran for six weeks at five stops, in rain and in snow.", ""),  # a line that is missing
        ("#set par(justify: true)", "#set parr(justify: true)"),  # a name in code
        ("six weeks", "*six* weeks"),  # markup where the samples have none
        ("= Introduction", "== _Introduction_ Introduction"),  # a line again
    ],
)
def test_what_the_samples_never_do_is_rejected(contract, old, new):
    pair = pairs("held_out.json")[0]
    assert old in pair["output"]
    assert accepts(contract, pair["input"], pair["output"])
    assert not accepts(contract, pair["input"], pair["output"].replace(old, new))


def test_pairs_that_paraphrase_enforce_nothing_about_the_text():
    samples = pairs("reports.json")[:20]
    for index, pair in enumerate(samples):
        words = [f"w{index}x{number}" for number in range(40)]
        pair["output"] = pair["output"].partition("\n= ")[0] + "\n\n" + " ".join(words)
    contract = learn(samples)
    assert "free" in dict(contract.contexts)[""]
    assert not contract.complete
    record = samples[0]["input"]
    guard = TextGuard(contract, RecordText(record, BODY, contract.style_words))
    read = read_pieces(START, "Anything else may be written here. ")
    assert read is not None and guard.read(TextState(), read[1]) is not None


def test_nothing_of_a_single_project_is_stored():
    samples = pairs("reports.json")
    secret = "Zebrafinch"
    samples[0]["output"] += f'\n\n{secret} #text(font: "{secret}")[{secret}]\n'
    assert secret.casefold() not in json.dumps(learn(samples).to_json()).casefold()


def test_fit_stores_the_contract_and_prints_it(run, tmp_path):
    flags = ["--model.base_model", "typst-nano", "--eval.records", 0, "--trainer.max_steps", 1]
    flags += ["--trainer.limit_val_batches", 1, "--run_dir", tmp_path]
    result = run("fit", "--config", "demo", *flags)
    assert result.status == 0, result.err
    assert "Text contract of 45 of 45 training pairs" in result.out + result.err
    stored = json.loads((tmp_path / "adapter/last/typst_lit.json").read_text("utf-8"))["contract"]
    assert TextContract.from_json(stored).complete
