"""`typst-lit serve`, whose accelerator fails once a request with ``max_tokens`` 33 has three tokens."""

from __future__ import annotations

import sys

import torch

from typst_lit.cli import main
from typst_lit.inference.decoder import Decoder

step = Decoder.step


def failing_step(decoder: Decoder) -> None:
    step(decoder)
    if any(request.settings.max_tokens == 33 and request.num_generated > 3 for request in decoder.requests):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")


if __name__ == "__main__":
    Decoder.step = failing_step  # type: ignore[method-assign]
    sys.exit(main())
