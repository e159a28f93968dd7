from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from typst_lit.callbacks.page_previews import show_pages
from typst_lit.metrics.documents import Candidate
from typst_lit.metrics.scoring import Scorer
from typst_lit.typesetting.typesetter import Typesetter


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")  # TensorBoard's own copy
def test_tensorboard_shows_sources_and_diagnostics_as_text(tmp_path) -> None:
    from tensorboard import plugin_util

    image = "![x](http://example.org/x.png)"
    sources = [f'#panic("{image}")', f"Text\r\r{image}\n```\n{image}"]
    candidates = [Candidate(f"**record** {image}", {"text": "one"}, "text", source, "one") for source in sources]
    with Typesetter(workers=1) as typesetter, SummaryWriter(str(tmp_path)) as writer:
        show_pages(writer, list(Scorer(typesetter).score(candidates)), step=1)
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    tags = accumulator.Tags()["tensors"]
    assert len(tags) == 4
    for tag in tags:
        (text,) = accumulator.Tensors(tag)[0].tensor_proto.string_val
        rendered = plugin_util.markdown_to_safe_html(text)
        assert "![x](http://example.org/x.png)" in rendered
        assert not any(f"<{element}" in rendered for element in ("img", "strong", "a "))
