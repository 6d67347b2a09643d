"""Ask a Docker Engine whether it is there, without a client that leaves sockets open when it is not."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def engine_answers(path: Path, timeout: float = 10.0) -> bool:
    """Whether the Docker Engine at a socket answers a request for its state.

    Args:
        path: The engine's unix socket.
        timeout: Seconds to wait for the answer.
    """
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("GET", "/info")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
