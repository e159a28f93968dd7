"""The socket on which `serve` and `app` listen."""

from __future__ import annotations

import socket

from typst_lit.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on an address; port 0 takes a free one.

    Raises:
        UserError: when the address does not exist, or its port is in use or out of range.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(f"can't listen on {host}, port {port} ({error}).", hint="Choose another `port`.") from error
