from __future__ import annotations

import json

import torch
from packaging.requirements import Requirement

from typst_lit.cli import doctor


def test_the_report_has_what_works(run) -> None:
    result = run("doctor")
    assert result.status == 0 and torch.__version__.split("+")[0] in result.out
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.startswith("  ")}
    assert "works" in lines["4-bit"] and "works" in lines["compiler"]
    assert "cut off" in lines["network"] and "limited" in lines["memory"] and "families" in lines["fonts"]
    assert ("none" in lines["GPU"]) == (not torch.cuda.is_available())
    assert "flash" in lines["attention"] and "GiB free" in lines["disk"]
    assert "not reached" in lines["access"] and "HF_HUB_OFFLINE" in result.out  # the tests run without a network


def test_the_findings_as_json(run) -> None:
    result = run("doctor", "--json")
    assert result.status == 0, result.err
    findings = {(item["section"], item["name"]): item for item in json.loads(result.out)}
    assert findings["training", "4-bit"] == {"section": "training", "name": "4-bit", "found": "works", "fix": None}
    assert findings["packages", "torch"]["found"] == torch.__version__
    assert findings["hub", "access"]["fix"]


def test_versions_that_do_not_fit_are_named_with_the_command(run, monkeypatch) -> None:
    real = doctor.version
    bad = {"lightning": "2.6.2", "jsonargparse": "5.0.0"}
    monkeypatch.setattr(doctor, "version", lambda name: bad.get(name) or real(name))
    result = run("doctor")
    fixes = [line.split("'")[1] for line in result.out.splitlines() if "-> pip install '" in line]
    assert {Requirement(fix).name for fix in fixes} == set(bad)
    assert all(not Requirement(fix).specifier.contains(bad[Requirement(fix).name]) for fix in fixes)


def test_broken_4bit_layers_are_found(run, monkeypatch) -> None:
    from typst_lit.model import backbones

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("no library for this device")

    monkeypatch.setattr(backbones, "Linear4bit", broken)
    result = run("doctor")
    assert "no library for this device" in result.out and "--model.use_4bit false" in result.out
    assert result.out.rstrip().endswith("the lines with ->.")
