"""``typst-lit contract``: the contract of pairs is printed, and stored with an adapter."""

from __future__ import annotations

import json
import shutil

from typst_lit.contract.text_contract import TextContract


def test_the_contract_of_pairs_is_printed_and_stored(run, able_pairs, able_adapter, tmp_path):
    data, adapter = tmp_path / "pairs.json", tmp_path / "adapter"
    data.write_text(json.dumps(able_pairs))
    shutil.copytree(able_adapter / "adapter" / "best", adapter)
    before = json.loads((adapter / "typst_lit.json").read_text("utf-8"))
    printed = run("contract", "--data.path", data)
    assert (
        printed.status == 0 and f"Text contract of {len(able_pairs)} of {len(able_pairs)} training pairs" in printed.out
    )
    stored = run("contract", "--data.path", data, "--adapter", adapter)
    assert stored.status == 0 and stored.out.startswith(printed.out) and f"Stored in {adapter}" in stored.out
    after = json.loads((adapter / "typst_lit.json").read_text("utf-8"))
    assert TextContract.from_json(after.pop("contract")).num_pairs == len(able_pairs)
    before.pop("contract", None)
    assert after == before  # its template and settings stay


def test_outputs_that_do_not_compile_have_none(run, able_pairs, tmp_path):
    data = tmp_path / "pairs.json"
    data.write_text(json.dumps([pair | {"output": "#panic()"} for pair in able_pairs]))
    result = run("contract", "--data.path", data)
    assert result.status == 1 and f"none of {len(able_pairs)} outputs compiles" in result.err
    assert run("contract", "--data.path", data, "--max_pairs", 0).status == 1
