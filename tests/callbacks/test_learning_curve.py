from __future__ import annotations

import pytest

from typst_lit.callbacks import diagnose


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], "does not show a trend"),
        ([2.0, 1.5, 1.2], "still falling"),
        ([2.0, 1.0, 1.3, 1.4], "risen by 0.4000 since epoch 2.00"),
        ([2.0, 1.001, 1.0], "leveled off"),
        ([float("nan")], "val_loss is not finite (nan) at epoch 1.00: the weights have diverged; no usable adapter"),
        (
            [2.0, float("inf"), float("nan")],
            "(inf) at epoch 2.00: the weights have diverged; adapter/best is from epoch 1.00",
        ),
        ([2.0, float("nan"), 1.0], "is not finite"),
    ],
)
def test_the_diagnosis_of_a_curve_is_in_plain_language(values, words) -> None:
    text = diagnose([(float(epoch), value, None) for epoch, value in enumerate(values, start=1)])
    assert words in text and all(f"{value:.4f}" in text for value in values)
