"""``typst-lit app``: the web page."""

from __future__ import annotations

import importlib.util
import logging
from functools import partial

from typst_lit.cli.listening import listen
from typst_lit.cli.model_arguments import ModelArguments
from typst_lit.cli.parser import Command
from typst_lit.errors import UserError
from typst_lit.inference.settings import GenerationSettings
from typst_lit.typesetting.typesetter import Typesetter

log = logging.getLogger(__name__)
REQUIRED = ("streamlit", "pygments", "prometheus_client")


@Command
def app(
    *,
    model: ModelArguments,
    generation: GenerationSettings,
    typesetting: partial[Typesetter],
    host: str = "127.0.0.1",
    port: int = 8501,
) -> None:
    """Open a web page that writes documents from records.

    The page has the fields of a record, its document while it is generated, the typeset pages, and the files.

    Args:
        model: Which model generates.
        generation: How it is sampled.
        typesetting: The limits of each document.
        host: Address to listen on. With another than this one, other machines can open the page as well.
        port: Port to listen on; 0 takes a free one.
    """
    model.validate()
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        raise UserError(f"the page needs {', '.join(missing)}.", hint="pip install 'typst-lit[app]'")
    from typst_lit.serving.web_page import check_settings, serve_web_page

    check_settings(generation, model.attempts)
    with listen(host, port) as listening:  # Streamlit would end with a traceback where that is impossible
        port = listening.getsockname()[1]
    log.info("The page: http://%s:%d", host, port)
    serve_web_page(lambda: model.load(generation, typesetting()), host, port)
