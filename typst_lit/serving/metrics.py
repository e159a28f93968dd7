"""What ``/metrics`` reports, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from typst_lit.inference.attempts import GeneratedDocument
    from typst_lit.inference.engine import Engine


class ServiceMetrics:
    """Counters of a service, in a registry of its own.

    Args:
        engine: the engine whose queue is measured.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self.tokens = Counter("typst_lit_tokens", "Generated tokens", registry=registry)
        self.refused = Counter("typst_lit_refused", "Requests refused because the queue was full", registry=registry)
        self._documents = Counter("typst_lit_documents", "Generated documents", ["finish_reason"], registry=registry)
        self._not_compiled = Counter("typst_lit_not_compiled", "Documents that do not compile", registry=registry)
        self._clean = Counter("typst_lit_clean", "Clean documents", registry=registry)
        self._not_clean = Counter("typst_lit_not_clean", "Documents that are not clean", registry=registry)
        self._seconds = Histogram(
            "typst_lit_seconds",
            "Seconds from request to document",
            buckets=(0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600),
            registry=registry,
        )
        waiting = Gauge("typst_lit_waiting", "Documents that wait for the model", registry=registry)
        waiting.set_function(lambda: engine.num_waiting)
        running = Gauge("typst_lit_running", "Documents that are being generated", registry=registry)
        running.set_function(lambda: engine.num_running)

    def record_document(self, document: GeneratedDocument, seconds: float) -> None:
        """Counts a finished document, and the seconds since its request."""
        self._documents.labels(document.finish_reason).inc()
        self._not_compiled.inc(document.compiled is False)
        self._clean.inc(document.clean is True)
        self._not_clean.inc(document.clean is False)
        self._seconds.observe(seconds)

    def render(self) -> bytes:
        """Returns all metrics in the Prometheus text format."""
        return generate_latest(self.registry)
