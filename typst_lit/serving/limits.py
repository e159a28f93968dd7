"""What clients may take: connections, time and memory."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import psutil

from typst_lit.errors import UserError

BACKLOG = 64  # connections that the system holds until the server accepts them
RESERVED_FILES = 64  # for the model, the compiler's processes, and what libraries open
MAX_FILES = 65536
CONNECTIONS_BEYOND_QUEUE = 192  # idle ones, those that send a body, and documents that are being generated
MIN_CONNECTIONS = 4


@dataclass(frozen=True)
class ServerLimits:
    """What clients may take.

    Args:
        queue: Maximum number of waiting documents; further requests get 429.
        max_body_kib: Maximum size of a request, in KiB; larger ones get 413.
        max_connections: Maximum number of connections, by default 192 more than may wait. When it is reached, a new
            connection replaces the one that has been idle longest.
        client_timeout_s: Seconds that a client may take to send the headers of a request, and to send its body (then
            408), and for which it may read nothing of a response.
        shutdown_timeout_s: Seconds that running requests have to finish after SIGTERM or Ctrl-C; a second signal ends
            the server immediately.

    Raises:
        UserError: naming a value that is out of range.
    """

    queue: int = 64
    max_body_kib: int = 1024
    max_connections: int | None = None
    client_timeout_s: float = 30.0
    shutdown_timeout_s: int = 60

    def __post_init__(self) -> None:
        for name, minimum in (("queue", 0), ("max_body_kib", 1), ("max_connections", MIN_CONNECTIONS)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise UserError(f"must be {minimum} or more, not {value}.", setting=name)
        if not self.client_timeout_s > 0:
            raise UserError(f"must be above 0, not {self.client_timeout_s}.", setting="client_timeout_s")
        if self.shutdown_timeout_s < 1:
            raise UserError(f"must be 1 or more, not {self.shutdown_timeout_s}.", setting="shutdown_timeout_s")

    @property
    def num_connections(self) -> int:
        """The maximum number of connections, where it is not given as well."""
        return self.queue + CONNECTIONS_BEYOND_QUEUE if self.max_connections is None else self.max_connections


def raise_file_limit() -> int:
    """Raises this process's limit of open files as far as the system lets it; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    goal = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft == resource.RLIM_INFINITY or soft >= goal:
        return MAX_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
    except (OSError, ValueError):  # macOS has a limit of its own
        return soft
    return goal


def connections_for_files(file_limit: int) -> int:
    """Returns how many connections a limit of open files leaves space for.

    Raises:
        UserError: when it leaves too little.
    """
    connections = file_limit - psutil.Process().num_fds() - RESERVED_FILES - BACKLOG
    if connections < MIN_CONNECTIONS:
        raise UserError(
            f"this process may open only {file_limit} files at the same time, and each connection takes one.",
            hint="Raise the limit: ulimit -n 1024.",
        )
    return connections
