from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.metrics import broken_versions, compiled_documents
from typst_lit.contract import TextContract
from typst_lit.metrics import images as images_module
from typst_lit.metrics.documents import (
    Document,
    DocumentMetric,
    compute_metrics,
    document_metrics,
    update_metric,
)
from typst_lit.metrics.images import page_similarity
from typst_lit.typesetting.results import CompileResult
from typst_lit.typesetting.typesetter import Typesetter


@pytest.fixture(scope="module")
def typesetter() -> Iterator[Typesetter]:
    with Typesetter() as typesetter:
        yield typesetter


@pytest.fixture(scope="module")
def scores(typesetter) -> dict[str, dict[str, float]]:
    """The scores of the sample documents, unchanged and damaged in each way."""
    import json

    from tests.conftest import SAMPLES

    pairs = json.loads(SAMPLES.read_text("utf-8"))
    scores = {}
    for way, sources in broken_versions(pairs).items():
        metrics = document_metrics()
        compiled = compiled_documents(pairs, sources, typesetter, ppi=72)
        for metric in metrics.values():
            update_metric(metric, compiled)
        scores[way] = compute_metrics(metrics)
    return scores


def test_good_documents_have_good_scores(scores) -> None:
    good = scores["as they are"]
    for name in ("compile_rate", "field_presence", "page_similarity", "edit_similarity", "chrf", "bleu", "rouge1"):
        assert good[name] == pytest.approx(1, abs=1e-4), name
    # In three samples the caption of a table is above it in the record and below it on the page.
    assert good["fidelity"] > 0.95 and good["invention"] == 0 and good["page_count_error"] == 0


def test_damaged_documents_score_lower_in_the_right_order(scores) -> None:
    ways = ("as they are", "heading changed", "paragraph dropped", "another record's")
    for name in ("fidelity", "edit_similarity", "chrf"):
        values = [scores[way][name] for way in ways]
        assert values == sorted(values, reverse=True) and len(set(values)) == len(values), (name, values)
    ways = ("as they are", "heading changed", "paragraph doubled", "another record's")
    values = [scores[way]["invention"] for way in ways]
    assert values == sorted(values) and len(set(values)) == len(values), values
    for name in ("page_similarity", "field_presence"):
        assert scores["another record's"][name] < scores["paragraph dropped"][name] <= scores["as they are"][name]
    assert all(scores[way]["page_similarity"] < 0.999 for way in scores if way != "as they are")
    assert all(scores[way]["compile_rate"] == 1 for way in scores)  # damage that compile_rate does not see


def test_a_document_that_does_not_compile_shows_nothing(typesetter) -> None:
    fields = {"title": "Hill", "text": "some words"}
    good, bad = typesetter.compile("#set page(header: [Hill])\nsome words", 36), typesetter.compile("#bad", 36)
    metrics = document_metrics()
    compiled = [Document("a", fields, "text", "#bad", bad, "ref", good)]
    for metric in metrics.values():
        update_metric(metric, compiled)
    values = compute_metrics(metrics)
    assert values["compile_rate"] == values["fidelity"] == values["page_similarity"] == values["field_presence"] == 0
    assert "invention" not in values and "page_count_error" not in values


def test_without_references_only_metrics_that_need_none_are_computed(typesetter) -> None:
    metrics = document_metrics()
    compiled = [Document("a", {"text": "some words"}, "text", "some words", typesetter.compile("some words", 36))]
    for metric in metrics.values():
        update_metric(metric, compiled)
    assert compute_metrics(metrics) == {"compile_rate": 1, "fidelity": 1, "invention": 0}
    assert compute_metrics(document_metrics()) == {}


def test_documents_are_counted_as_written_after_repair_and_as_clean(typesetter) -> None:
    contract = TextContract(3, "0.15.2", min_fidelity=1.0, style_words=("page",))
    fields, repair = {"text": "some words"}, "line 1, column 1: escaped a stray #"
    documents = [
        Document("", fields, "text", source, typesetter.compile(source), "", None, finish_reason, repairs, contract)
        for source, finish_reason, repairs in [
            ("some words", "stop", []),
            ("some words", "stop", [repair]),
            ("some words", "length", []),
            ("some other words", "stop", []),
            ("some", "stop", []),
            ("#bad", "stop", []),
            ("#bad", "stop", []),
            ("Page some words", "stop", []),
        ]
    ]
    assert [document.assessment.clean for document in documents] == [True, *[False] * 6, True]
    metrics = document_metrics()
    for metric in metrics.values():
        update_metric(metric, documents)
    values = compute_metrics(metrics)
    assert values["compile_rate"] == 5 / 8 and values["compile_rate_after_repair"] == 6 / 8
    assert values["clean_rate"] == 2 / 8 and values["fidelity"] == (5 + 0.5) / 8


# Images


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Structural similarity by its definition, window by window (Wang et al. 2004, equation 13)."""
    coordinates = np.arange(11) - 5
    line = np.exp(-(coordinates**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    scores = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            cov = (window * a * b).sum() - mean_a * mean_b
            top = (2 * mean_a * mean_b + 0.01**2) * (2 * cov + 0.03**2)
            scores.append(top / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return float(np.mean(scores))


def test_page_similarity_agrees_with_its_definition() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (32, 40))
    y = np.clip(x + rng.integers(-60, 60, x.shape), 0, 255)
    assert page_similarity([png(x)], [png(y)]) == pytest.approx(naive_ssim(x / 255, y / 255), abs=0.03)  # borders
    batch = torch.tensor(np.stack([x, y])).float()[:, None] / 255
    _, full_image = images_module.structural_similarity_index_measure(
        batch[:1], batch[1:], data_range=1.0, return_full_image=True
    )
    assert float(full_image[..., 5:-5, 5:-5].mean()) == pytest.approx(naive_ssim(x / 255, y / 255), abs=1e-4)


def test_page_similarity_counts_missing_pages_and_other_paper_sizes() -> None:
    white, black = png(np.full((40, 30), 255)), png(np.zeros((40, 30)))
    assert page_similarity([white], [white]) == 1 and page_similarity([], []) == 1
    assert page_similarity([white], [white, white]) == page_similarity([white, white], [white]) == 0.5
    assert page_similarity([], [white]) == 0 and page_similarity([white], [black]) < 0.01
    assert page_similarity([black], [png(np.zeros((80, 60)))]) < 0.8
    assert 0 <= page_similarity([png(np.zeros((2, 3)))], [png(np.zeros((2, 4000)))]) <= 1  # smaller than the window


# State


class OriginAsScore(DocumentMetric):
    def score(self, document: Document) -> float | None:
        return float(document.origin) if document.origin else None


def documents_from(*origins: str) -> list[Document]:
    return [
        Document(origin, {"text": "a"}, "text", "a b c d e f", CompileResult(True), "a b c d e g") for origin in origins
    ]


def test_a_metric_is_the_mean_over_documents_with_a_score() -> None:
    metric = OriginAsScore()
    metric.update(documents_from("1", "", "4"))
    metric.update(documents_from("4"))
    assert float(metric.compute()) == 3
    metric.reset()
    metric.update(documents_from(""))
    assert math.isnan(metric.compute())


def _run_process(rank: int, store: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics: dict[str, Any] = {"mean": OriginAsScore(), **document_metrics()}
    for metric in metrics.values():
        if rank == 0:  # the other process has no documents, as with more processes than records
            update_metric(metric, documents_from("1", "2", "6"))
    (Path(results) / f"{rank}").write_text(repr(compute_metrics(metrics)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_scores_are_computed_over_all_processes(tmp_path) -> None:
    torch.multiprocessing.spawn(_run_process, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    metrics: dict[str, Any] = {"mean": OriginAsScore(), **document_metrics()}
    for metric in metrics.values():
        update_metric(metric, documents_from("1", "2", "6"))
    alone = compute_metrics(metrics)
    assert alone["mean"] == 3 and {"compile_rate", "chrf", "bleu", "rouge1", "rougeL"} <= alone.keys()
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == repr(alone)


def test_rouge_agrees_with_torchmetrics() -> None:
    from torchmetrics.text import ROUGEScore

    pairs = [("= A\n#set text(11pt)\nThe cat sat.", "= B\nThe *cat* sat on it."), ("x", "y"), ("#a-b_c", "a b c d")]
    compiled = [Document("", {}, "text", source, CompileResult(True), reference) for source, reference in pairs]
    expected = ROUGEScore(rouge_keys=("rouge1", "rouge2", "rougeL"))
    expected.update([source for source, _ in pairs], [reference for _, reference in pairs])
    metrics = {name: metric for name, metric in document_metrics().items() if name.startswith("rouge")}
    for metric in metrics.values():
        update_metric(metric, compiled)
    for name, value in compute_metrics(metrics).items():
        assert value == pytest.approx(float(expected.compute()[f"{name}_fmeasure"])), name


def test_scores_of_real_reports(typesetter) -> None:
    """Needs real reports: TYPST_LIT_REPORTS=pairs.json"""
    import json

    path = os.environ.get("TYPST_LIT_REPORTS")
    if not path:
        pytest.skip("TYPST_LIT_REPORTS is not set to a file of real pairs")
    pairs = json.loads(Path(path).read_text("utf-8"))[::5]
    with Typesetter(normalize_paths=True) as normalizing:
        compiled = compiled_documents(pairs, [pair["output"] for pair in pairs], normalizing, ppi=36)
    metrics = document_metrics()
    for name in ("compile_rate", "fidelity", "field_presence", "page_similarity"):
        update_metric(metrics[name], compiled)
        assert float(metrics[name].compute()) > 0.95, name
