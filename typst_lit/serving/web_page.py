"""Serves the web page: starts Streamlit on `typst_lit/serving/streamlit_app.py`, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.resources import files

from typst_lit.errors import UserError
from typst_lit.inference.generator import Generator
from typst_lit.inference.settings import GenerationSettings
from typst_lit.serving.hosts import LOOPBACK_HOSTS, is_loopback

MAX_NUMBER = 2**53 - 1  # of an input field: the largest integer of JavaScript
MAX_UPLOAD_MB = 20
HOSTS_OPTION = "server.allowedHosts"  # of recent versions of Streamlit
_load_generator: Callable[[], Generator] | None = None


def check_settings(generation: GenerationSettings, max_attempts: int) -> None:
    """Checks that the page's input fields can hold the settings.

    Raises:
        UserError: naming a value that is too large.
    """
    for name in ("generation.max_tokens", "generation.top_k", "generation.seed", "attempts"):
        value = max_attempts if name == "attempts" else getattr(generation, name.removeprefix("generation."))
        if value > MAX_NUMBER:
            raise UserError(f"must be at most {MAX_NUMBER} on the web page, not {value}.", setting=name)


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
        "server.maxUploadSize": MAX_UPLOAD_MB,
        "client.showErrorDetails": "none",  # a traceback has the paths of this machine; the log has it
        "client.toolbarMode": "viewer",
        "browser.gatherUsageStats": "false",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    has_hosts_option = any(f"--{HOSTS_OPTION}" in parameter.opts for parameter in cli.main_run.params)
    if is_loopback(host) and has_hosts_option:
        # Otherwise a web page of another site could rebind its name to this address, and use the page.
        names = [*(name.strip("[]") for name in LOOPBACK_HOSTS), host]
        flags += [text for name in names for text in (f"--{HOSTS_OPTION}", name)]
    sys.argv = ["streamlit", "run", str(files("typst_lit") / "serving" / "streamlit_app.py"), *flags]
    cli.main()


def load_generator() -> Generator:
    """Returns what `serve_web_page` was given to load; called by the page.

    Raises:
        UserError: when the model or adapter cannot be loaded, or the input fields can't hold an adapter's settings.
    """
    if _load_generator is None:
        raise RuntimeError("Start this page with `typst-lit app`.")
    generator = _load_generator()
    for adapter in generator.templates:
        check_settings(generator.settings_for(adapter), generator.max_attempts)
    return generator
