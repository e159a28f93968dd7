"""The README's script for Ray Train, run unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

README = Path(__file__).parents[1] / "README.md"


def run(args: list[object], directory: Path) -> subprocess.CompletedProcess[str]:
    variables = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(README.parent)}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command,
        env={**os.environ, **variables},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_ray_train_workers_match_gradient_accumulation(fit_args, tmp_path) -> None:
    pytest.importorskip("ray.train", reason="Ray is not installed: pip install 'typst-lit[ray]'")
    (script,) = re.findall(r"```python\n(# fit_on_ray\.py.*?)```", README.read_text("utf-8"), re.DOTALL)
    (tmp_path / "fit_on_ray.py").write_text(script)
    args = [*fit_args[1:], "--model.adapter.lora_dropout", "0", "--model.learning_rate", "1e-2"]
    two_workers = run([tmp_path / "fit_on_ray.py", "2", *args], tmp_path)
    assert two_workers.returncode == 0, two_workers.stdout + two_workers.stderr
    accumulation = ["--run_dir", tmp_path / "one", "--trainer.accumulate_grad_batches", "2"]
    one_process = run(["-m", "typst_lit", "fit", *args, *accumulation], tmp_path)
    assert one_process.returncode == 0, one_process.stderr
    expected, weights = (
        load_file(tmp_path / name / "adapter/last/adapter_model.safetensors") for name in ("one", "run")
    )
    assert any(value.any() for name, value in expected.items() if "lora_B" in name)
    for name in expected:
        assert (weights[name] - expected[name]).norm() <= 0.02 * expected[name].norm(), name
