"""The process that serves: its connections, its reaction to signals, and its end when the model fails."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from typst_lit._compat.uvicorn import Connection
from typst_lit.progress import Every
from typst_lit.serving.limits import BACKLOG, ServerLimits, connections_for_files, raise_file_limit

log = logging.getLogger(__name__)
CHECK_INTERVAL_S = 1  # between two checks of all connections
FORCED_EXIT_S = 2.0  # after a second signal
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
OUT_OF_FILES_LOG_INTERVAL_S = 60.0


class Config(uvicorn.Config):
    """uvicorn's settings.

    Args:
        app: the ASGI application.
        limits: what clients may take.
        max_connections: maximum number of connections.
    """

    def __init__(self, app: Any, limits: ServerLimits, max_connections: int) -> None:
        super().__init__(
            app,
            http=BoundedConnection,
            ws="none",
            lifespan="on",
            log_config=None,  # its loggers' warnings are shown as those of other libraries
            access_log=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=limits.shutdown_timeout_s,
            timeout_notify=CHECK_INTERVAL_S,
        )
        self.limits = limits
        self.max_connections = max_connections


class BoundedConnection(Connection):
    """One of at most ``max_connections`` connections: beyond that, a new one replaces one that waits for its client.

    Connections are replaced in this order, the longest wait first: those without a request, those whose request has not
    arrived completely, and those whose client does not read. So clients that only hold connections can't keep others
    out. Where all others have complete requests, the new one is closed.
    """

    config: Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connections = [connection for connection in open_connections(self.server_state) if connection is not self]
        if len(connections) < self.config.max_connections:
            return
        candidates = [(rank, connection) for connection in connections if (rank := connection.rank()) is not None]
        replaced = min(candidates, key=lambda item: item[0])[1] if candidates else self
        replaced.abort()

    def rank(self) -> tuple[int, float] | None:
        """Returns its position among those that may be replaced; None where it may not be."""
        for order, may_be_replaced in enumerate((self.is_idle, self.is_receiving, self.is_blocked)):
            if may_be_replaced:
                return order, self.waiting_since
        return None

    def close_if_slow(self) -> None:
        """Closes the connection when its client takes longer than it may."""
        timeout_s = self.config.limits.client_timeout_s
        waits_too_long = self.is_open and self.is_idle and self.loop.time() - self.waiting_since > timeout_s
        if self.stalled_s() > timeout_s or waits_too_long:
            self.abort()


def open_connections(state: ServerState) -> list[BoundedConnection]:
    """Returns the connections of a server that are not closing."""
    connections: Any = state.connections
    return [connection for connection in connections if connection.is_open]


class Server(uvicorn.Server):
    """Serves an application until a signal arrives, or until `fail` is called.

    Args:
        app: the ASGI application.
        limits: what clients may take.

    Attributes:
        error: what `fail` was called with.
        exit_signal: the signal that ended the server immediately, without waiting for requests.
    """

    def __init__(self, app: Any, limits: ServerLimits) -> None:
        file_limit = raise_file_limit()
        max_connections = min(limits.num_connections, connections_for_files(file_limit))
        if max_connections < limits.num_connections:
            log.warning(
                "Only %d connections instead of %d: this process may open only %d files at the same time. "
                "`ulimit -n` raises the limit.",
                max_connections,
                limits.num_connections,
                file_limit,
            )
        super().__init__(Config(app, limits, max_connections))
        self.config.callback_notify = self._close_slow_connections
        self.error: Exception | None = None
        self.exit_signal: int | None = None
        self._num_signals = 0
        self._file_limit = file_limit
        self._log_due = Every(OUT_OF_FILES_LOG_INTERVAL_S)
        self._ran_out_of_files = False

    def fail(self, error: Exception) -> None:
        """Ends the server because of an error; may be called from any thread."""
        self.error = error
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._handle_loop_error)
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave the application to the event loop, which logs that as an error
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Reacts to SIGTERM and SIGINT: the first one lets running requests finish, a second one does not wait."""
        self._num_signals += 1
        if self._num_signals > 1:
            self.exit_signal = sig
            self.force_exit = True
            for connection in open_connections(self.server_state):
                connection.abort()
            # whatever a thread or the compiler is doing
            timer = threading.Timer(FORCED_EXIT_S, os._exit, [128 + sig])
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)

    async def _close_slow_connections(self) -> None:
        connections: Any = self.server_state.connections
        for connection in list(connections):
            connection.close_if_slow()

    def _handle_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Logs errors of the event loop. asyncio logs a lack of file descriptors up to `BACKLOG` times per second."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in OUT_OF_FILES):
            loop.default_exception_handler(context)
        elif not self._ran_out_of_files or self._log_due():
            self._ran_out_of_files = True
            log.warning(
                "All %d file descriptors of this process are in use; new connections wait. "
                "`ulimit -n` raises the limit, `max_connections` limits connections.",
                self._file_limit,
            )
