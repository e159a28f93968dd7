"""Messages between the parent and a compiler process, with a deadline for each."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

MAX_MESSAGE_BYTES = 1 << 31
_HEADER = struct.Struct("!Q")  # the number of bytes that follow


@dataclass(frozen=True)
class Channel:
    """One end of a socket pair, over which messages of bytes are sent.

    `multiprocessing.connection.Connection` blocks for as long as the other process does: one that is stopped in the
    middle of a message would block this one until it is continued. Here the deadline is that of the whole message.

    Args:
        socket: a connected stream socket.

    >>> ends = socket.socketpair()
    >>> with ends[0], ends[1]:
    ...     Channel(ends[0]).send(b"= Title")
    ...     Channel(ends[1]).receive()
    b'= Title'
    """

    socket: socket.socket

    def send(self, message: bytes, deadline: float | None = None) -> None:
        """Sends a message.

        Args:
            message: any bytes.
            deadline: latest time until which it may take, as `time.monotonic` measures it; None waits without limit.

        Raises:
            TimeoutError: at the deadline. The channel can't be used any more.
            OSError: when the other end is closed.
        """
        for part in (_HEADER.pack(len(message)), message):
            self._set_deadline(deadline)
            self.socket.sendall(part)

    def receive(self, deadline: float | None = None) -> bytes:
        """Receives a message.

        Args:
            deadline: latest time until which it may take, as `time.monotonic` measures it; None waits without limit.

        Raises:
            TimeoutError: at the deadline. The channel can't be used any more.
            EOFError: when the other end is closed.
            OSError: when the other end is closed, or sends what is not a message.
        """
        (size,) = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if size > MAX_MESSAGE_BYTES:
            raise OSError(f"a message of {size} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
        return bytes(self._read(size, deadline))

    def _read(self, size: int, deadline: float | None) -> bytearray:
        content = bytearray(size)
        remaining = memoryview(content)
        while remaining:
            self._set_deadline(deadline)
            received = self.socket.recv_into(remaining)
            if not received:
                raise EOFError
            remaining = remaining[received:]
        return content

    def _set_deadline(self, deadline: float | None) -> None:
        if deadline is None:
            self.socket.settimeout(None)
            return
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self.socket.settimeout(remaining_s)
