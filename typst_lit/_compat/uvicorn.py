"""Undocumented API of uvicorn, as read in 0.54.0: the state of a connection.

uvicorn's ``limit_concurrency`` refuses requests but holds their connections, and it has no time limits for headers and
for responses that are not read.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection that knows what it is waiting for.

    Attributes:
        waiting_since: when it began to wait for a request's headers, in seconds of the event loop's clock.
    """

    waiting_since = 0.0
    _unsent_bytes = 0
    _unsent_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting_since = self.loop.time()

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    @property
    def is_open(self) -> bool:
        """Whether it is not closed, nor closing."""
        return not self.transport.is_closing()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress: its headers have not arrived completely."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_receiving(self) -> bool:
        """Whether the body of a request has not arrived completely."""
        return not self.is_idle and self.cycle.more_body

    @property
    def is_blocked(self) -> bool:
        """Whether the client does not read the response."""
        return self.flow.write_paused

    def stalled_s(self) -> float:
        """Returns for how many seconds the client has read nothing of what was to be sent; call it regularly."""
        now, unsent_bytes = self.loop.time(), self.transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._unsent_since = unsent_bytes, now
        return now - self._unsent_since if unsent_bytes else 0.0

    def abort(self) -> None:
        """Closes the connection at once; what is not sent yet is lost."""
        self.transport.abort()
