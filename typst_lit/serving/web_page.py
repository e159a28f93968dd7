"""Serves the web page: starts Streamlit on `typst_lit/serving/streamlit_app.py`, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.resources import files

from typst_lit.inference.generator import Generator

_load_generator: Callable[[], Generator] | None = None


def serve_web_page(load_generator: Callable[[], Generator], host: str, port: int) -> None:
    """Serves the page until the process is stopped.

    Args:
        load_generator: called once, when the page is opened for the first time.
        host: address to listen on.
        port: port to listen on.
    """
    from streamlit.web import cli

    global _load_generator
    _load_generator = load_generator
    options = {
        "server.port": port,
        "server.address": host,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    sys.argv = ["streamlit", "run", str(files("typst_lit") / "serving" / "streamlit_app.py"), *flags]
    cli.main()


def load_generator() -> Generator:
    """Returns what `serve_web_page` was given to load; called by the page.

    Raises:
        UserError: when the model or adapter cannot be loaded.
    """
    if _load_generator is None:
        raise RuntimeError("Start this page with `typst-lit app`.")
    return _load_generator()
