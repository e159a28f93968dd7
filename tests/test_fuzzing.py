"""Inputs that nobody wrote: whatever they are, a clear message or a result; never a traceback, never a hang."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import TrainerFn

from typst_lit.cli import main
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.errors import UserError

GOOD = {
    "starting_page": 1, "academic_year": "2025-26", "department": "Physics", "project_title": "Waves",
    "contents_txt": "Some text.",
}  # fmt: skip
TEXTS = [name for name, value in GOOD.items() if isinstance(value, str)]

any_character = st.characters(codec=None)  # all of them: control characters, unassigned ones, halves of pairs
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(any_character, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(any_character, max_size=8), inner, max_size=3),
    max_leaves=8,
)
fine_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30).map(
    lambda text: text + "x"
)
wrong_text = st.one_of(
    st.sampled_from(["", " \n\t", "a\0b", "half \ud800"]), st.integers(), st.booleans(), st.lists(st.just("a")),
    st.floats(allow_nan=False),
)  # fmt: skip
wrong_number = st.one_of(
    st.integers(max_value=-1), st.integers(min_value=2**63), st.floats(), st.booleans(),
    st.sampled_from(["", "one", "1.5", "-3", "9" * 30, "٣"]), st.just([1]), st.just({}),
)  # fmt: skip


@st.composite
def records(draw: Any) -> tuple[dict[str, Any], bool]:
    """Returns a record and whether it is sound."""
    record: dict[str, Any] = {**GOOD, **draw(st.dictionaries(st.sampled_from(TEXTS), fine_text, max_size=2))}
    if draw(st.booleans()):
        record["starting_page"] = draw(st.integers(0, 2**63 - 1))
    if draw(st.integers(0, 2)):
        return record, True
    field = draw(st.sampled_from([*TEXTS, "starting_page"]))
    if draw(st.integers(0, 3)) == 0:
        del record[field]
    else:
        record[field] = draw(wrong_number if field == "starting_page" else wrong_text)
    return record, False


def no_records(value: Any) -> bool:
    """Tells whether a value is neither a record nor, alone in a file, a list of records."""
    return not isinstance(value, dict) and not (isinstance(value, list) and all(isinstance(v, dict) for v in value))


@st.composite
def pairs(draw: Any) -> tuple[Any, bool]:
    """Returns a training pair and whether it is sound."""
    record, sound = draw(records())
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return {"input": record}, False
    if kind == 1:
        return {"input": record, "output": draw(wrong_text)}, False
    if kind == 2:
        return draw(junk.filter(no_records)), False
    return {"input": record, "output": draw(fine_text)}, sound


def written(path: Path, values: list[Any], form: str) -> None:
    lines = [json.dumps(value, ensure_ascii=form.endswith("ascii")) for value in values]
    text = "[" + ",\n".join(lines) + "]" if form.startswith("list") else "\n".join(lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def times(count: int, strategy: Any, check: Callable[[Any], None]) -> None:
    """Runs a check on so many values."""
    options = settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    options(given(strategy)(check))()


FORMS = st.sampled_from(["list", "list ascii", "lines ascii"])
HOW_MANY = [pytest.param(60, id="few"), pytest.param(5000, id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", HOW_MANY)
@pytest.mark.parametrize("predict", [False, True], ids=["fit", "predict"])
def test_files_of_records(tmp_path, count, predict) -> None:
    """What is sound is kept; of the rest, file and place are named."""

    def read(path: Path, on_invalid: Any) -> int:
        if predict:
            data = TypstDataModule(predict_path=str(path), on_invalid=on_invalid, cache_dir=str(tmp_path / "cache"))
            data.load(TrainerFn.PREDICTING)
            return len(data.predict_records())
        return len(TypstDataModule(str(path), on_invalid=on_invalid, cache_dir=str(tmp_path / "cache")).pairs())

    def check(drawn: tuple[list[tuple[Any, bool]], str]) -> None:
        made, form = drawn
        path = tmp_path / ("made.json" if form.startswith("list") else "made.jsonl")
        written(path, [value for value, _ in made], form)
        sound = sum(good for _, good in made)
        if sound:
            assert read(path, "skip") == sound
        else:
            with pytest.raises(UserError, match=path.name):
                read(path, "skip")
        if sound == len(made):
            assert read(path, "error") == sound
            return
        with pytest.raises(UserError) as raised:
            read(path, "error")
        message = str(raised.value)
        for place, (_, good) in enumerate(made):
            where = f"{path}, record {place} (" if form.startswith("list") else f"{path}, line {place + 1}:"
            assert (where in message) != good, message

    times(count, st.tuples(st.lists(records() if predict else pairs(), min_size=1, max_size=4), FORMS), check)


@pytest.mark.parametrize("count", HOW_MANY)
def test_files_of_anything(tmp_path, count) -> None:
    """Broken structure: one message that names the file."""

    def check(content: bytes) -> None:
        path = tmp_path / "anything.json"
        path.write_bytes(content)
        try:
            TypstDataModule(str(path), cache_dir=str(tmp_path / "cache")).pairs()
        except UserError as error:
            assert str(path) in str(error)

    whole = json.dumps([{"input": GOOD, "output": "= Waves"}] * 3).encode()
    contents = st.one_of(
        st.binary(max_size=200),
        st.text(any_character, max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        junk.map(lambda value: json.dumps(value).encode()),
        st.integers(0, len(whole)).map(lambda end: whole[:end]),
        st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=3)).map(
            lambda cut: whole[: cut[0]] + cut[1] + whole[cut[0] + len(cut[1]) :]
        ),
        st.sampled_from([b"[" * 100_000, b'{"input":' * 50_000, b"\xef\xbb\xbf[]", b"\xff\xfe[\x00]\x00"]),
    )  # fmt: skip
    times(count, contents, check)


def test_fields_of_ten_megabytes(tmp_path) -> None:
    path = tmp_path / "large.json"
    large = {**GOOD, "contents_txt": "word " * 2_000_000}
    path.write_text(
        json.dumps([{"input": large, "output": "= Waves"}, {"input": {**large, "department": 7}, "output": "x"}])
    )
    with pytest.raises(UserError) as raised:
        TypstDataModule(str(path), cache_dir=str(tmp_path / "cache")).pairs()
    assert f"{path}, record 1 " in str(raised.value) and len(str(raised.value)) < 1000


SETTINGS = [
    "model.base_model", "model.use_4bit", "model.adapter", "model.adapter.r", "model.learning_rate", "model.schedule",
    "model.generation.temperature", "model.metrics", "data.path", "data.batch_size", "data.max_length", "data.source",
    "data.template", "data.val_fraction", "data.num_workers", "trainer.max_epochs", "trainer.precision",
    "trainer.callbacks", "trainer.accumulate_grad_batches", "model.warmup_steps", "model.warmup_ratio",
    "watchdog.spike",
    "adapter_checkpoint.keep", "eval.samples", "typesetting.timeout_s", "run_dir", "plan", "seed_everything", "nothing",
    "model.nothing", "trainer.nothing.at_all",
]  # fmt: skip
PLAUSIBLE = st.sampled_from(
    [0, 1, -1, 0.5, 1e9, "auto", "none", True, None, "", [], {}, {"class_path": "peft.LoraConfig"}, {"r": "x"},
     {"class_path": "no.such.Thing"}, {"class_path": "os.system", "init_args": {"command": "true"}}, "32-true", [1, 2]]
)  # fmt: skip


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in flat.items():
        here = made
        *groups, last = key.split(".")
        for group in groups:
            here = here.setdefault(group, {}) if isinstance(here.get(group, {}), dict) else {}
        here[last] = value
    return made


@pytest.mark.parametrize("count", [pytest.param(15, id="few"), pytest.param(2000, id="many", marks=pytest.mark.slow)])
def test_configurations(tmp_path, capfd, monkeypatch, count) -> None:
    """No run can begin, as the data is not there; what is wrong is said in a few lines, with status 1 or 2."""
    monkeypatch.chdir(tmp_path)

    def check(config: Any) -> None:
        path = tmp_path / "made.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(nested(config)), "utf-8")
        status = main(["fit", "--config", str(path), "--data.path", "not_there.json", "--trainer.accelerator", "cpu"])
        told = capfd.readouterr().err
        assert status in (1, 2) and "Traceback" not in told, told
        assert told.strip()

    flat = st.dictionaries(st.sampled_from(SETTINGS), PLAUSIBLE | junk.filter(dumpable), max_size=3)
    garbage = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
    times(count, st.one_of(flat, flat, flat, garbage), check)


def dumpable(value: Any) -> bool:
    try:
        yaml.safe_dump(value).encode()
    except (yaml.YAMLError, UnicodeEncodeError):
        return False
    return True
