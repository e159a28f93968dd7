"""Documents of a model with random weights: what was written is compiled meanwhile, and goes back where that fails."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files

import pytest

from typst_lit import GenerationSettings, Generator
from typst_lit.contract.learning import TrainingPair, learn_contract
from typst_lit.contract.record_text import RecordText
from typst_lit.contract.text_guard import TextGuard
from typst_lit.data.prompts import ReportPrompt
from typst_lit.inference import tracker as tracker_module
from typst_lit.inference.checks import PrefixChecker
from typst_lit.inference.constraints import OutputConstraint
from typst_lit.inference.tracker import OutputTracker, PrefixCheck, _Pending
from typst_lit.typesetting.typesetter import Typesetter

SAMPLES = files("typst_lit") / "data/samples"

RANDOM = GenerationSettings(max_tokens=150, temperature=1.0, top_p=1.0, top_k=0)


@pytest.fixture(scope="module")
def generator(tiny_model):
    with Typesetter(workers=2) as typesetter:
        yield Generator.load(base_model=str(tiny_model), use_4bit=False, typesetter=typesetter)


def documents(generator: Generator, records, settings: GenerationSettings, batch_size: int = 8):
    generator.settings = settings
    generator.engine.batch_size = batch_size
    return sorted(generator.generate(records), key=lambda document: document.index)


@pytest.fixture(scope="module")
def records(able_pairs):
    return [pair["input"] for pair in able_pairs]


def test_documents_of_random_weights_compile_as_they_are_written(generator, records):
    checked = documents(generator, records, RANDOM)
    assert all(document.compiled and not document.repairs for document in checked)
    assert all(document.result.text.strip() for document in checked)
    assert sum(document.tokens for document in checked) > 80 * len(checked)
    unchecked = documents(generator, records, replace(RANDOM, checkpoints=False))
    assert any(not document.compiled or document.repairs for document in unchecked)
    assert not any(document.rollbacks for document in unchecked)
    assert any(document.rollbacks for document in checked)


def test_where_it_goes_back_to_depends_on_the_text_only(generator, records):
    short = replace(RANDOM, max_tokens=80)
    together = [document.source for document in documents(generator, records[:4], short)]
    assert [document.source for document in documents(generator, records[:4], short, batch_size=1)] == together
    assert [
        document.source for document in documents(generator, records[:4], replace(short, prompt_lookup=False))
    ] == together


def test_what_is_streamed_is_never_taken_back(generator, records):
    generator.settings = RANDOM
    texts: list[str] = []
    future = generator.submit(generator.attempts(records[0]), on_text=texts.append)
    future.add_done_callback(lambda _: generator.engine.wake())
    generator.engine.run(until=future.done)
    source = future.result().source
    assert texts and all(later.startswith(text) for text, later in zip(texts, [*texts[1:], source], strict=True))


@pytest.fixture(scope="module")
def sample_contract():
    pairs = json.loads((SAMPLES / "reports.json").read_text("utf-8"))
    with Typesetter() as typesetter:
        results = list(typesetter.compile_many(pair["output"] for pair in pairs))
    body_field = ReportPrompt().body_field
    return learn_contract(
        [
            TrainingPair(pair["input"], body_field, pair["output"], result)
            for pair, result in zip(pairs, results, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def held_out():
    return [pair["input"] for pair in json.loads((SAMPLES / "held_out.json").read_text("utf-8"))]


def test_with_a_contract_random_weights_invent_nothing(tiny_model, sample_contract, held_out):
    with Typesetter(workers=2) as typesetter:
        generator = Generator.load(base_model=str(tiny_model), use_4bit=False, typesetter=typesetter)
        generator.contracts = {None: sample_contract}
        for document in documents(generator, held_out[:3], RANDOM):
            assert document.compiled and not document.repairs
            assert document.invented_words == () and not document.contract_abandoned


def test_the_next_line_is_forced_where_the_model_wants_to_end(tokenizer, sample_contract, held_out):
    guard = TextGuard(sample_contract, RecordText(held_out[0], "contents_txt", sample_contract.style_words))
    tracker = OutputTracker(OutputConstraint(tokenizer), guard)
    lines = [line for line in held_out[0]["contents_txt"].splitlines() if line]
    for token in tokenizer(f"*{lines[0]}*\n\n= {lines[1]}\n\n{lines[2]}\n")["input_ids"]:
        assert tracker.append(token)
    assert not tracker.may_end()
    first = tracker.add_next_line()
    forced = [first, *tracker.forced_tokens()]
    assert tokenizer.decode(forced).strip() == lines[3]
    for token in forced[1:]:
        assert tracker.append(token)
    assert tracker.may_end() == (len(lines) == 4) and tracker.forced_tokens() == []


def test_code_that_repeats_without_text_is_a_stall(tokenizer, sample_contract, held_out):
    guard = TextGuard(sample_contract, RecordText(held_out[0], "contents_txt", sample_contract.style_words))
    for contract_guard, stalls in ((guard, True), (None, False)):
        tracker = OutputTracker(OutputConstraint(tokenizer), contract_guard)
        source = "#set text(size: 12pt)\n\n" * 40
        for token in tokenizer(source)["input_ids"]:
            if tracker.is_stalled or not tracker.append(token):
                break
        assert tracker.is_stalled == stalls
        assert (tracker.states[-1].length < len(source) / 4) == stalls


def test_a_stall_that_was_streamed_stays(tokenizer, sample_contract, held_out):
    guard = TextGuard(sample_contract, RecordText(held_out[0], "contents_txt", sample_contract.style_words))
    for is_streamed in (False, True):
        tracker = OutputTracker(OutputConstraint(tokenizer), guard, is_streamed=is_streamed)
        for token in tokenizer("#set text(size: 12pt)\n\n" * 40)["input_ids"]:
            if tracker.is_stalled or not tracker.append(token):
                break
        tracker.check_due(lambda count: "")  # without a compiler, all of it is shown
        assert tracker.is_stalled and tracker.confirmed == tracker.num_tokens
        assert (tracker.leave_stall() is None) == is_streamed


@pytest.fixture(scope="module")
def check(sample_contract):
    with Typesetter() as typesetter, ThreadPoolExecutor(1) as executor:
        yield PrefixChecker(typesetter, executor, {"contents_txt": "It rains. The rain falls."}, sample_contract)


@pytest.mark.parametrize(
    ("prefix", "closers", "expected"),
    [
        ("It rains.", "", PrefixCheck(True)),
        ("It Snows. The rain falls.", "", PrefixCheck(True, 3, is_invented=True)),
        ("It rains #snow falls.", "", PrefixCheck(False, 10)),
        ("#text(red, fill size", ")", PrefixCheck(False, 15)),
        ("#text(snow, ", ")", PrefixCheck(False, 6)),
        ("#let f = (snow, ", ")", PrefixCheck(False, None, is_incomplete=True)),
        ("#heading()", "", PrefixCheck(False, 1, is_incomplete=True)),
        ("#page(margin: (top: 1.2", "))", PrefixCheck(False, 14, is_incomplete=True)),  # a unit may follow
        ("#let f = (rain, snow)", "", PrefixCheck(False, None, is_incomplete=True)),  # an arrow may follow
    ],
)
def test_a_check_finds_the_position_of_what_is_wrong(check, prefix, closers, expected):
    assert check(prefix, closers, False).result() == expected


@pytest.mark.parametrize(
    ("source", "is_decided"),
    [
        ("#block(width: 1.2", False),  # a unit may follow
        ("#block(width: 1.2, ", True),
        ("#block(inset: (left: 1.2", False),
        ("#block(inset: (left: 1.2), ", True),
        ("#block(width: (x, y)", False),  # an arrow may follow
        ("#block(stack(heading(", False),  # its body may follow
        ("#block(stack(heading(level: 1), ", True),
        ("#show heading.where(", False),  # a colon may follow
        ("#layout(size", False),  # an arrow may follow
        ("#table(table.hline(y: 2), [It rains.],", False),  # more rows may follow
        ("#let f(x) = 1pt + x\n#f((", False),  # what fails compiled before
    ],
)
def test_an_error_is_decided_where_its_argument_has_ended(tokenizer, check, source, is_decided):
    tracker = OutputTracker(OutputConstraint(tokenizer), check=check)
    for token in tokenizer(source)["input_ids"]:
        assert tracker.append(token)
        tracker.check_due(lambda count: tokenizer.decode(tracker._tokens[:count]))
    tracker._add(_Pending(tracker.num_tokens, check(source, tracker.closers, False)))
    assert (tracker.settle(wait=True) is not None) is is_decided


def test_where_nothing_may_follow_in_code_it_soon_goes_back_to_its_start(tokenizer):
    tracker = OutputTracker(OutputConstraint(tokenizer))
    for token in tokenizer("It rains.\n\n#figure(\n  caption: [")["input_ids"]:
        tracker.append(token)
    steps = []
    while "#" in (source := tokenizer.decode(tracker._tokens[: tracker.num_tokens])):
        target = tracker.leave_dead_end()
        assert target is not None
        excluded = tracker._tokens[target]
        steps.append(tracker.num_tokens - target)
        tracker.truncate(target)
        tracker.exclude(excluded)
    assert source == "It rains.\n\n"
    assert steps[:2] == [1, 1] and len(steps) == 3


def test_a_valid_document_never_goes_back(tokenizer, pairs, monkeypatch):
    for name, value in {"MAX_UNCHECKED": 1, "MIN_UNCHECKED": 1, "MAX_STRING": 24}.items():
        monkeypatch.setattr(tracker_module, name, value)
    with Typesetter() as typesetter, ThreadPoolExecutor(1) as executor:
        for pair in pairs[::20]:
            tracker = OutputTracker(OutputConstraint(tokenizer), check=PrefixChecker(typesetter, executor, {}, None))
            for token in tokenizer(pair["output"])["input_ids"]:
                assert tracker.append(token)
                tracker.check_due(lambda count, tracker=tracker: tokenizer.decode(tracker._tokens[:count]))
                assert tracker.settle(wait=True) is None
            assert tracker.confirmed > tracker.num_tokens / 2


def test_after_code_that_kept_failing_text_follows(tokenizer, check, monkeypatch):
    monkeypatch.setattr(tracker_module, "MIN_DISCARDED", 16)
    tracker = OutputTracker(OutputConstraint(tokenizer), check=check)

    def write(text: str) -> bool:
        accepted = [tracker.append(token) for token in tokenizer(text)["input_ids"]]  # those that may follow
        return all(accepted)

    assert write("It rains.\n\n")
    for attempt in range(40):
        write(f"The rain falls. #snow{attempt} falls.\n\n")
        tracker.check_due(lambda count: tokenizer.decode(tracker._tokens[:count]))
        while (target := tracker.settle(wait=True)) is not None:
            excluded = tracker._tokens[target]
            tracker.truncate(target)
            tracker.exclude(excluded)
        if tracker.has_given_up:
            break
    assert tracker.has_given_up
    source = tokenizer.decode(tracker._tokens[: tracker.num_tokens])
    assert "#" not in source and check(source, "", True).result().ok
    assert not write("#emph[a]")
    assert write("It rains.")


def test_a_construct_is_checked_more_often_near_failures(tokenizer):
    counts: list[int] = []

    def refuse(prefix: str, closers: str, is_final: bool) -> Future[PrefixCheck]:
        counts.append(len(tokenizer(prefix)["input_ids"]))
        result: Future[PrefixCheck] = Future()
        result.set_result(PrefixCheck(len(counts) % 2 == 0, 1))
        return result

    tracker = OutputTracker(OutputConstraint(tokenizer), check=refuse)
    lengths = []
    for _ in range(2):
        start = len(counts)
        for token in tokenizer("#emph[" + "It rains. " * 40)["input_ids"][tracker.num_tokens :]:
            tracker.append(token)
            tracker.check_due(lambda count: tokenizer.decode(tracker._tokens[:count]))
            if len(counts) > start:
                break
        lengths.append(counts[-1])
        tracker.settle(wait=True)
        tracker.truncate(1)
    assert lengths[0] >= 24 > lengths[1]


@pytest.mark.slow
def test_after_one_epoch_documents_keep_their_records_text(run, held_out, tmp_path):
    result = run("fit", "--config", "demo", "--trainer.max_epochs", 1, "--eval.records", 0, "--run_dir", tmp_path)
    assert result.status == 0, result.err
    generated = documents(Generator.load(tmp_path), held_out, GenerationSettings())
    assert all(document.compiled and not document.repairs for document in generated)
    assert sum(document.fidelity for document in generated) / len(generated) > 0.95
