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
from typst_lit.typesetting.escaping import escape_markup
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
    assert contract.ordered and contract.copied and contract.exact
    assert contract.min_shown == 1.0 and contract.max_deviations == contract.num_exceptions == 0
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
        ("#set par(justify: true)", "#lorem(9)"),  # a function
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
    assert contract.min_shown < 0.5
    record = samples[0]["input"]
    guard = TextGuard(contract, RecordText(record, BODY, contract.style_words))
    read = read_pieces(START, "Anything else may be written here. ")
    assert read is not None and guard.read(TextState(), read[1]) is not None


def test_outputs_that_correct_a_record_keep_the_rest_of_it():
    samples = pairs("reports.json")
    for pair in samples[::4]:  # a typo, and a line that only the record has
        text = pair["input"][BODY].splitlines()
        index = max(range(len(text)), key=lambda number: len(text[number]))
        text[index] = text[index].replace(" the ", " teh ", 1)
        pair["input"][BODY] = "\n".join(text)
    contract = learn(samples)
    assert contract.ordered and contract.copied and contract.min_shown == 1.0
    assert contract.max_deviations == 1
    assert not any("free" in names for names in dict(contract.contexts).values())


@pytest.mark.parametrize(
    ("text", "deviations"),
    [
        ("It rained in May.\n\nIt snows in June.\n\nHail falls.", 1),  # another word
        ("It often rains in May.\n\nIt snows in June.\n\nHail falls.", 1),  # one more word
        ("It rains in May.\n\nHail falls.\n\nIt snows in June.", 1),  # another order
        ("It rains in.\n\nIt snows in June.\n\nHail falls.", 1),  # a line that ends early
        ("It rains in May.\n\nIt thaws and freezes in June.\n\nHail falls.", 3),
    ],
)
def test_words_that_deviate_are_counted_once(text, deviations):
    record = RecordText({BODY: "It rains in May.\nIt snows in June.\nHail falls."}, BODY)
    contract = TextContract(2, "", 1.0, contexts=(("", ("body",)),), ordered=True, copied=True, max_deviations=9)
    read = read_pieces(START, f"{text}\n\n ")
    assert read is not None
    guard = TextGuard(contract, record)
    assert guard.read(TextState(), read[1]) is None
    state = guard.read(TextState(), read[1], may_deviate=True)
    assert state is not None and state.deviations == deviations
    assert guard.share_of_lines(state) >= 2 / 3


def test_markup_and_code_without_text_are_no_longer_than_in_the_samples(contract):
    guard = TextGuard(contract, RecordText(pairs("held_out.json")[0]["input"], BODY, contract.style_words))
    assert len(contract.gaps) == 8 and contract.gaps == tuple(sorted(contract.gaps, reverse=True))
    assert guard.may_have_gaps(contract.gaps)
    assert not guard.may_have_gaps((2 * contract.gaps[0], 0, 0))  # such as the same code again and again
    assert not guard.may_have_gaps((contract.gaps[0],) * 8)


def test_lines_of_typst_code_are_not_required():
    record = RecordText({BODY: 'Rain\n#figure(\nimage("a.png"),\ncaption: [Rain in May],\n)\nIt rains.'}, BODY)
    assert [bool(record.required >> line & 1) for line in range(record.num_lines)] == [True, False, False, False, True]
    assert "rain in may" in [item.text for item in record.phrases if item.source == "code"]


def with_code_in_records(outputs_have_it: bool) -> TextContract:
    code = "#text(size: 12pt)[Rain in May]"  # the outputs use this function anyway
    samples = pairs("reports.json")
    for pair in samples:
        pair["input"]["contents_txt"] += f"\n\n{code}"
        pair["output"] += "\n\n" + (code if outputs_have_it else escape_markup(code, at_line_start=True))
    return learn(samples)


def test_names_in_code_of_the_record_may_be_used_where_outputs_have_such_code():
    body = 'Rain\n\n#list(tight: true, [It rains.], read("a.txt"))\n\n#read("/etc/passwd")'
    record = RecordText(pairs("held_out.json")[0]["input"] | {BODY: body}, BODY)

    def accepts(contract: TextContract, source: str) -> bool:
        read = read_pieces(START, source)
        assert read is not None
        return TextGuard(contract, record).read(TextState(), read[1]) is not None

    contract = with_code_in_records(True)
    assert contract.code
    assert accepts(contract, "#list(tight: true, [It rains.])\n")
    assert not accepts(contract, "#list(tight: true, [It snows.])\n")
    assert not accepts(contract, "#enum[It rains.]\n")
    assert not accepts(contract, '#read("/etc/passwd")\n')
    other = with_code_in_records(False)
    assert not other.code
    assert not accepts(other, "#list(tight: true, [It rains.])\n")


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
    assert TextContract.from_json(stored).min_shown == 1.0
