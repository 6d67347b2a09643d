"""The local Prefect server is started once, by whoever comes first, and is never taken for another's."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_SERVER_API_PORT, temporary_settings

from prefect_dstack import api
from prefect_dstack.errors import OrchestratorError
from prefect_dstack.hosts import supervisor
from tests.home import Home

# Stands in for Prefect's server, which takes half a minute to start.
STAND_IN = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a script the server; at the end it is stopped."""

    def use(script: str) -> None:
        def program(port: int, directory: Path) -> supervisor.Program:
            return supervisor.Program(
                arguments=[sys.executable, "-c", script, str(port)], working_directory=directory
            )

        monkeypatch.setattr(api, "_program", program)

    use(STAND_IN)
    with temporary_settings({PREFECT_SERVER_API_PORT: home.port}):
        yield use
        api.stop_local_server()


@pytest.fixture
def another(home: Home) -> Iterator[int]:
    """The port of a server that answers as ours would, and is somebody else's."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", home.port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield home.port
        server.shutdown()


def silent(_: str) -> None:
    """Nobody wants to know."""


@pytest.mark.usefixtures("stand_in")
class TestStart:
    def test_gives_the_url_of_a_server_that_answers(self, home: Home) -> None:
        told: list[str] = []

        url = api.start_local_server(told.append)

        assert url == f"http://127.0.0.1:{home.port}/api"
        assert told == [f"starting a Prefect server on this machine, once: http://127.0.0.1:{home.port}"]
        assert api.answers(url)
        assert api.local_server_url() == url

    def test_again_finds_the_first(self) -> None:
        first = api.start_local_server(silent)
        told: list[str] = []

        assert api.start_local_server(told.append) == first
        assert told == []

    def test_from_many_sides_starts_one(self, home: Home) -> None:
        with ThreadPoolExecutor(6) as pool:
            urls = set(pool.map(lambda _: api.start_local_server(silent), range(6)))

        assert len(urls) == 1
        assert len([it for it in home.processes() if "serve_forever" in " ".join(it.cmdline())]) == 1

    def test_passes_over_a_port_in_use(self, another: int) -> None:
        assert api.start_local_server(silent) == f"http://127.0.0.1:{another + 1}/api"

    def test_is_not_taken_in_by_who_took_its_port_meanwhile(
        self, another: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Prefect's server needs half a minute from when its port was free to when it listens there."""
        answers = iter([True])
        monkeypatch.setattr(
            api,
            "port_is_free",
            lambda port: next(answers, None) or (port != another and port > another),
        )

        assert api.start_local_server(silent) == f"http://127.0.0.1:{another + 1}/api"

    def test_of_what_ends_at_once_says_its_last_words(
        self, stand_in: Callable[[str], None], home: Home
    ) -> None:
        stand_in("import sys; print('starting', flush=True); sys.exit('no module named fastapi')")

        with pytest.raises(
            OrchestratorError, match=r"does not start: no module named fastapi; see .*output\.log"
        ):
            api.start_local_server(silent)
        assert not list(home.processes())


@pytest.mark.usefixtures("stand_in")
class TestStop:
    def test_leaves_nothing(self, home: Home) -> None:
        url = api.start_local_server(silent)

        assert api.stop_local_server()

        assert not api.answers(url)
        assert api.local_server_url() is None
        assert not list(home.processes())

    def test_of_nothing_says_so(self) -> None:
        assert not api.stop_local_server()

    def test_is_not_for_ever(self) -> None:
        api.start_local_server(silent)
        api.stop_local_server()

        assert api.answers(api.start_local_server(silent))


def test_a_server_that_crashed_comes_back_by_itself(stand_in: Callable[[str], None]) -> None:
    url = api.start_local_server(silent)
    pid = supervisor.status(api._directory() / "process").pid
    assert pid is not None

    psutil.Process(pid).kill()

    assert api.start_local_server(silent) == url


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://no-such-host.invalid/api"])
def test_who_does_not_listen_does_not_answer(url: str) -> None:
    assert not api.answers(url)
