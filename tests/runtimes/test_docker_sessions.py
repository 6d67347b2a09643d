"""How a container connects to its own ports, by what its image has; run here, where all of it is."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from prefect_dstack.runtimes.docker_sessions import WITH_BASH, WITH_PYTHON

COMMANDS = {"bash": ["bash", "-c", WITH_BASH, "bash"], "python": [sys.executable, "-c", WITH_PYTHON]}


@pytest.fixture
def port() -> Iterator[int]:
    """A port that answers one line in capitals, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(lines.readline().upper())

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_it_carries_both_directions_until_the_other_end_hangs_up(command: list[str], port: int) -> None:
    with subprocess.Popen(
        [*command, "127.0.0.1", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.read() == b"HELLO\n"
        process.wait(30)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_it_fails_where_nothing_answers(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = subprocess.run([*command, "127.0.0.1", str(port)], capture_output=True, timeout=30, check=False)
    assert (done.returncode != 0, done.stdout) == (True, b"")
