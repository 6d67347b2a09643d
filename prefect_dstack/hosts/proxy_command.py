"""The way to a host through a command, as `ProxyCommand` of `~/.ssh/config` asks for it.

paramiko has a class for this, which runs no shell, spins when the command ends, and stalls once the command
has written more to its standard error than a pipe holds. A pair of sockets has none of these faults.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from typing import IO

__all__ = ["ProxySocket"]

# Most commands end when their input does, the others when they are asked to.
GRACE = 0.5
LONGEST_COMPLAINT = 300
ENDED_BY_US = (-signal.SIGTERM, -signal.SIGKILL, -signal.SIGPIPE)


class ProxySocket(socket.socket):
    """A socket whose other end is the standard input and output of a command; closing it ends the command.

    Args:
        command: For the user's shell, as it stands in `~/.ssh/config`, its tokens replaced.

    Raises:
        OSError: If the user's shell cannot be started.
    """

    def __init__(self, command: str) -> None:
        self._complaint = ""
        self._ending = threading.Lock()
        self._ended = False
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(
                [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                # A group of its own, to be ended as a whole, and no terminal whose Ctrl-C would end it first.
                start_new_session=True,
            )
            super().__init__(fileno=ours.detach())
        self._listening = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listening.start()

    def close(self) -> None:
        """Close the socket, and end the command with everything it has started."""
        super().close()
        with self._ending:
            if not self._ended:
                self._ended = True
                if not self._ends_by_itself():
                    self._signal(signal.SIGTERM)
                    self._ends_by_itself()
                # What it has started may still be there.
                self._signal(signal.SIGKILL)
                self._process.wait()
        self._listening.join(GRACE)

    def outcome(self) -> tuple[int | None, str]:
        """Close the socket, and return what became of the command.

        Returns:
            Its exit code, None if it was ended here, and the last line of its standard error.
        """
        self.close()
        code = self._process.returncode
        return (None if code in ENDED_BY_US else code), self._complaint

    def _ends_by_itself(self) -> bool:
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _listen(self, errors: IO[bytes]) -> None:
        """Read what the command complains of: nobody else does, and a full pipe would stop it."""
        with errors:
            while line := errors.readline(4096):
                text = line.decode(errors="replace").strip()
                if text:
                    self._complaint = text[:LONGEST_COMPLAINT]
