from __future__ import annotations

import torch


def test_the_doctor_tells_what_works(run) -> None:
    result = run("doctor")
    assert result.status == 0 and torch.__version__.split("+")[0] in result.out
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.startswith("  ")}
    assert "works" in lines["4-bit"] and "works" in lines["compiler"]
    assert "cut off" in lines["network"] and "limited" in lines["memory"] and "families" in lines["fonts"]
    assert ("none" in lines["GPU"]) == (not torch.cuda.is_available())
