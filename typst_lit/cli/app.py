"""``typst-lit app``: the web page."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from typst_lit.cli.generate import add_model_arguments, check, load
from typst_lit.cli.parser import CommandParser
from typst_lit.errors import UserError

log = logging.getLogger(__name__)
NEEDED = ("streamlit", "pygments", "prometheus_client")


def parser() -> ArgumentParser:
    """Returns the command's parser."""
    made = CommandParser(prog="typst-lit app", description=run.__doc__)
    add_model_arguments(made)
    made.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; others see the page, too.")
    made.add_argument("--port", type=int, default=8501, help="Port to listen on.")
    return made


def run(args: Sequence[str]) -> None:
    """Opens a web page: a record's fields, its document as it is written, the typeset pages, and the files."""
    made = parser()
    check(made.instantiate_classes(made.parse_args(list(args))))
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"the page needs {', '.join(missing)}: pip install 'typst-lit[app]'")
    from typst_lit.serving.web_page import serve_web_page

    config = made.parse_args(list(args))
    log.info("The page: http://%s:%d", config.host, config.port)
    serve_web_page(lambda: load(made.instantiate_classes(config)), config.host, config.port)
