"""Random inputs: each gives a result or a clear message, never a traceback, never a hang."""

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
    "starting_page": 1,
    "academic_year": "2025-26",
    "department": "Physics",
    "project_title": "Waves",
    "contents_txt": "Some text.",
}
TEXTS = [name for name, value in GOOD.items() if isinstance(value, str)]

any_character = st.characters(codec=None)  # control characters, unassigned ones, halves of surrogate pairs too
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(any_character, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(any_character, max_size=8), inner, max_size=3),
    max_leaves=8,
)
valid_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30).map(
    lambda text: text + "x"
)
invalid_text = st.one_of(
    st.sampled_from(["", " \n\t", "a\0b", "half \ud800"]),
    st.integers(),
    st.booleans(),
    st.lists(st.just("a")),
    st.floats(allow_nan=False),
)
invalid_number = st.one_of(
    st.integers(max_value=-1),
    st.integers(min_value=2**63),
    st.floats(),
    st.booleans(),
    st.sampled_from(["", "one", "1.5", "-3", "9" * 30, "٣"]),
    st.just([1]),
    st.just({}),
)


@st.composite
def records(draw: Any) -> tuple[dict[str, Any], bool]:
    """Returns a record and whether it is valid."""
    record: dict[str, Any] = {**GOOD, **draw(st.dictionaries(st.sampled_from(TEXTS), valid_text, max_size=2))}
    if draw(st.booleans()):
        record["starting_page"] = draw(st.integers(0, 2**63 - 1))
    if draw(st.integers(0, 2)):
        return record, True
    field = draw(st.sampled_from([*TEXTS, "starting_page"]))
    if draw(st.integers(0, 3)) == 0:
        del record[field]
    else:
        record[field] = draw(invalid_number if field == "starting_page" else invalid_text)
    return record, False


def is_not_records(value: Any) -> bool:
    """Returns whether a value is neither a record nor, alone in a file, a list of records."""
    return not isinstance(value, dict) and not (isinstance(value, list) and all(isinstance(v, dict) for v in value))


@st.composite
def pairs(draw: Any) -> tuple[Any, bool]:
    """Returns a training pair and whether it is valid."""
    record, is_valid = draw(records())
    case = draw(st.integers(0, 9))
    if case == 0:
        return {"input": record}, False
    if case == 1:
        return {"input": record, "output": draw(invalid_text)}, False
    if case == 2:
        return draw(junk.filter(is_not_records)), False
    return {"input": record, "output": draw(valid_text)}, is_valid


def write_values(path: Path, values: list[Any], layout: str) -> None:
    lines = [json.dumps(value, ensure_ascii=layout.endswith("ascii")) for value in values]
    text = "[" + ",\n".join(lines) + "]" if layout.startswith("list") else "\n".join(lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def check_examples(num_examples: int, strategy: Any, check: Callable[[Any], None]) -> None:
    """Runs a check on random values."""
    options = settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    options(given(strategy)(check))()


LAYOUTS = st.sampled_from(["list", "list ascii", "lines ascii"])
COUNTS = [pytest.param(60, id="few"), pytest.param(5000, id="many", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("predict", [False, True], ids=["fit", "predict"])
def test_files_of_records(tmp_path, count, predict) -> None:
    """Valid records are kept; the errors of the others name file and line or index."""

    def read(path: Path, on_invalid: Any) -> int:
        if predict:
            data = TypstDataModule(predict_path=str(path), on_invalid=on_invalid, cache_dir=str(tmp_path / "cache"))
            data.load(TrainerFn.PREDICTING)
            return len(data.predict_records())
        return len(TypstDataModule(str(path), on_invalid=on_invalid, cache_dir=str(tmp_path / "cache")).pairs())

    def check(drawn: tuple[list[tuple[Any, bool]], str]) -> None:
        values, layout = drawn
        path = tmp_path / ("values.json" if layout.startswith("list") else "values.jsonl")
        write_values(path, [value for value, _ in values], layout)
        num_valid = sum(is_valid for _, is_valid in values)
        if num_valid:
            assert read(path, "skip") == num_valid
        else:
            with pytest.raises(UserError, match=path.name):
                read(path, "skip")
        if num_valid == len(values):
            assert read(path, "error") == num_valid
            return
        with pytest.raises(UserError) as raised:
            read(path, "error")
        message = str(raised.value)
        for index, (_, is_valid) in enumerate(values):
            origin = f"{path}, record {index} (" if layout.startswith("list") else f"{path}, line {index + 1}:"
            assert (origin in message) != is_valid, message

    check_examples(
        count, st.tuples(st.lists(records() if predict else pairs(), min_size=1, max_size=4), LAYOUTS), check
    )


@pytest.mark.parametrize("count", COUNTS)
def test_files_of_anything(tmp_path, count) -> None:
    """Files with an invalid structure: one message that names the file."""

    def check(content: bytes) -> None:
        path = tmp_path / "anything.json"
        path.write_bytes(content)
        try:
            TypstDataModule(str(path), cache_dir=str(tmp_path / "cache")).pairs()
        except UserError as error:
            assert str(path) in str(error)

    content = json.dumps([{"input": GOOD, "output": "= Waves"}] * 3).encode()
    contents = st.one_of(
        st.binary(max_size=200),
        st.text(any_character, max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        junk.map(lambda value: json.dumps(value).encode()),
        st.integers(0, len(content)).map(lambda end: content[:end]),
        st.tuples(st.integers(0, len(content) - 1), st.binary(max_size=3)).map(
            lambda cut: content[: cut[0]] + cut[1] + content[cut[0] + len(cut[1]) :]
        ),
        st.sampled_from([b"[" * 100_000, b'{"input":' * 50_000, b"\xef\xbb\xbf[]", b"\xff\xfe[\x00]\x00"]),
    )
    check_examples(count, contents, check)


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
    "generation.temperature", "model.metrics", "data.path", "data.batch_size", "data.max_length", "data.source",
    "data.template", "data.val_fraction", "data.num_workers", "trainer.max_epochs", "trainer.precision",
    "trainer.callbacks", "trainer.accumulate_grad_batches", "model.warmup_steps", "model.warmup_ratio",
    "watchdog.spike",
    "checkpoint.keep", "eval.samples", "typesetting.timeout_s", "run_dir", "plan", "seed_everything", "nothing",
    "model.nothing", "trainer.nothing.at_all",
]  # fmt: skip
PLAUSIBLE = st.sampled_from(
    [
        0,
        1,
        -1,
        0.5,
        1e9,
        "auto",
        "none",
        True,
        None,
        "",
        [],
        {},
        {"class_path": "peft.LoraConfig"},
        {"r": "x"},
        {"class_path": "no.such.Thing"},
        {"class_path": "os.system", "init_args": {"command": "true"}},
        "32-true",
        [1, 2],
    ]
)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, value in flat.items():
        group = config
        *names, last = key.split(".")
        for name in names:
            group = group.setdefault(name, {}) if isinstance(group.get(name, {}), dict) else {}
        group[last] = value
    return config


@pytest.mark.parametrize("count", [pytest.param(15, id="few"), pytest.param(2000, id="many", marks=pytest.mark.slow)])
def test_configurations(tmp_path, capfd, monkeypatch, count) -> None:
    """No run can start, because its data does not exist; a short message says what is wrong, with status 1 or 2."""
    monkeypatch.chdir(tmp_path)

    def check(config: Any) -> None:
        path = tmp_path / "random.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(nested(config)), "utf-8")
        status = main(["fit", "--config", str(path), "--data.path", "not_there.json", "--trainer.accelerator", "cpu"])
        message = capfd.readouterr().err
        assert status in (1, 2) and "Traceback" not in message, message
        assert message.strip()

    flat = st.dictionaries(st.sampled_from(SETTINGS), PLAUSIBLE | junk.filter(dumpable), max_size=3)
    garbage = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
    check_examples(count, st.one_of(flat, flat, flat, garbage), check)


def dumpable(value: Any) -> bool:
    try:
        yaml.safe_dump(value).encode()
    except (yaml.YAMLError, UnicodeEncodeError):
        return False
    return True
