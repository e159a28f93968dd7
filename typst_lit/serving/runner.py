"""The life of a service: its model is loaded in the background, it runs, and it may fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from typst_lit.serving.service import FAILED, GenerationService, ServiceUnavailableError

if TYPE_CHECKING:
    from typst_lit.inference.engine import Engine
    from typst_lit.inference.generator import Generator

log = logging.getLogger(__name__)


class ServiceRunner:
    """Loads a generator in the background and then runs its service.

    Args:
        load_generator: loads the generator; called in a thread.
        max_waiting: maximum number of documents that wait for the model.
        on_failure: called, in some thread, with the error when loading fails, or when the service has failed.
    """

    def __init__(
        self,
        load_generator: Callable[[], Generator],
        max_waiting: int,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._load_generator = load_generator
        self._max_waiting = max_waiting
        self._on_failure = on_failure
        self._service: GenerationService | None = None
        self._error: Exception | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._load, name="loading", daemon=True)

    def start(self, in_background: bool = True) -> None:
        """Starts to load the generator.

        Args:
            in_background: return at once; otherwise, once the service runs.
        """
        if in_background:
            self._thread.start()
        else:
            self._load()

    def stop(self) -> None:
        """Stops the service; a model that is being loaded is abandoned."""
        self._stopping = True
        if self._service is not None:
            self._service.stop()

    @property
    def is_loading(self) -> bool:
        """Whether a thread is still loading, be it for nothing."""
        return self._thread.is_alive()

    @property
    def status(self) -> Literal["loading", "ok", "failed"]:
        """What can be expected of the service now."""
        if self._error or (self._service and self._service.error):
            return "failed"
        return "ok" if self._service else "loading"

    @property
    def service(self) -> GenerationService:
        """The running service.

        Raises:
            ServiceUnavailableError: while the model is being loaded, and when it has failed.
        """
        if self.status == "ok" and self._service is not None:
            return self._service
        raise ServiceUnavailableError("The model is being loaded." if self.status == "loading" else FAILED)

    @property
    def engine(self) -> Engine | None:
        """The engine; None before the model is loaded."""
        return self._service.generator.engine if self._service else None

    def _load(self) -> None:
        try:
            service = GenerationService(self._load_generator(), self._max_waiting, self._on_failure)
        except Exception as error:
            self._error = error
            if self._on_failure is None:
                log.exception("The model could not be loaded")
            else:
                self._on_failure(error)
            return
        if not self._stopping:
            service.start()
            self._service = service
            log.info("The model is loaded: requests are answered.")
