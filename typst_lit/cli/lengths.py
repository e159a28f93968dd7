"""``typst-lit lengths``: how long the samples are, and what a maximum length would cost."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from typst_lit.cli.parser import Command
from typst_lit.data.datamodule import TypstDataModule
from typst_lit.manifest import check_output, write_output
from typst_lit.model.backbones import Backbone, PretrainedBackbone


class Tokenizer:
    """Whose tokens are counted.

    Args:
        base_model: Hub name, directory, or a built-in name.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code of the model's repository.
        backbone: Another way to load the tokenizer.
    """

    def __init__(
        self,
        base_model: str = "Qwen/Qwen3-1.7B",
        revision: str | None = None,
        trust_remote_code: bool = False,
        backbone: Backbone | None = None,
    ) -> None:
        self.base_model = base_model
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.backbone = backbone or PretrainedBackbone()

    def load(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer."""
        return self.backbone.load_tokenizer(self.base_model, self.revision, self.trust_remote_code)


@Command
def lengths(*, data: TypstDataModule, model: Tokenizer, output: str = "lengths.png", overwrite: bool = False) -> None:
    """Show how long the samples are, and what a maximum length would cost.

    Args:
        data: The pairs, with the same settings as fit.
        model: Whose tokens are counted.
        output: The image of the histogram; without matplotlib (pip install 'typst-lit[plot]') it is printed as text.
        overwrite: Replace an image that another program wrote.
    """
    check_output(output, overwrite)
    pairs = data.pairs()  # errors in the data are reported before the hub is asked for a tokenizer
    data.tokenizer = model.load()
    report = data.length_report(pairs)
    print(report.text())
    if importlib.util.find_spec("matplotlib") is None:
        print(f"\n{report.text_histogram()}\n\nhistogram as an image: pip install 'typst-lit[plot]'")
        return
    file_format = Path(output).suffix.removeprefix(".").lower() or "png"
    write_output(output, lambda stream: report.draw(stream, file_format), overwrite)
    print(f"\nhistogram: {output}")
