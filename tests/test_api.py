"""The local Prefect server is started once, by whoever comes first, and is never taken for another's."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_SERVER_API_PORT,
    temporary_settings,
)

from prefect_dstack import api
from prefect_dstack.certificates.authority import new_authority
from prefect_dstack.errors import OrchestratorError
from prefect_dstack.hosts import supervisor
from tests.command_line import CommandLine
from tests.home import Home
from tests.prefect_server import PrefectServer

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

    def test_keeps_the_port_that_controllers_and_workers_know(self, home: Home) -> None:
        with socket.create_server(("127.0.0.1", home.port)):
            first = api.start_local_server(silent)
        api.stop_local_server()

        assert first == f"http://127.0.0.1:{home.port + 1}/api"
        assert api.start_local_server(silent) == first

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


class TestCheck:
    """What works with Prefect's own client works here, and what does not is told in one line."""

    @pytest.fixture
    def wanted(self) -> dict[str, str]:
        """The headers without which the API refuses; a test fills them in."""
        return {}

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Path:
        """The file of a private authority, beside a certificate that it has issued."""
        authority = new_authority(datetime.now(UTC))
        key = ec.generate_private_key(ec.SECP256R1())
        chain = authority.issue(key, ["localhost"], datetime.now(UTC))
        unlocked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "server.pem").write_bytes(unlocked + chain)
        file = tmp_path / "authority.pem"
        file.write_text(authority.certificate)
        return file

    @pytest.fixture
    def https(self, authority: Path, wanted: dict[str, str]) -> Iterator[str]:
        """The URL of an API behind a certificate of the private authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(authority.with_name("server.pem"))
        with serving(wanted) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            yield f"https://localhost:{server.server_port}/api"

    @pytest.fixture
    def http(self, wanted: dict[str, str]) -> Iterator[str]:
        with serving(wanted) as server:
            yield f"http://localhost:{server.server_port}/api"

    def test_trusts_the_configured_authority(self, https: str, authority: Path) -> None:
        with temporary_settings({PREFECT_API_SSL_CERT_FILE: str(authority)}):
            assert api.answers(https)
            api.check(https)

    def test_trusts_any_certificate_where_that_is_configured(self, https: str) -> None:
        with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
            api.check(https)

    def test_says_how_to_trust_a_private_authority(self, https: str) -> None:
        with pytest.raises(OrchestratorError, match=r"is not trusted; .* PREFECT_API_SSL_CERT_FILE"):
            api.check(https)

    def test_sends_the_configured_headers(self, http: str, wanted: dict[str, str]) -> None:
        wanted["X-Tenant"] = "blue"

        with temporary_settings({PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Tenant": "blue"}}):
            api.check(http)
        with pytest.raises(OrchestratorError, match="refuses the credentials \\(401 Unauthorized\\)"):
            api.check(http)

    def test_says_that_the_authentication_string_is_wrong(self, http: str, wanted: dict[str, str]) -> None:
        wanted["Authorization"] = f"Basic {b64encode(b'admin:right').decode()}"

        with temporary_settings({PREFECT_API_AUTH_STRING: "admin:right"}):
            api.check(http)
        with (
            temporary_settings({PREFECT_API_AUTH_STRING: "admin:hunter2"}),
            pytest.raises(OrchestratorError, match="correct PREFECT_API_AUTH_STRING") as caught,
        ):
            api.check(http)
        assert "hunter2" not in str(caught.value)

    def test_says_that_somebody_else_answers(self, http: str) -> None:
        with pytest.raises(OrchestratorError, match=r"answers 404 Not Found; .* correct PREFECT_API_URL"):
            api.check(http.removesuffix("/api"))

    def test_says_that_nobody_listens(self) -> None:
        with pytest.raises(OrchestratorError, match=r"at http://127.0.0.1:9/api does not answer; start it"):
            api.check("http://127.0.0.1:9/api")


@contextlib.contextmanager
def serving(wanted: dict[str, str]) -> Iterator[http.server.ThreadingHTTPServer]:
    """Answer as an empty Prefect API does, to those who send the wanted headers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            allowed = all(self.headers.get(name) == value for name, value in wanted.items())
            found = self.path in ("/api/flows/filter", "/api/health")
            self.send_response((200 if found else 404) if allowed else 401)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        do_GET = do_POST = answer  # noqa: N815 - the names are the base class's

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.integration
def test_commands_say_in_one_line_that_a_real_server_refuses(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:right")
    server = PrefectServer(tmp_path / "server")
    server.start()
    try:
        wrong, right = (
            cli("ps", environment={"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": f"admin:{word}"})
            for word in ("hunter2", "right")
        )
    finally:
        server.stop()

    assert right.code == 0, right
    assert wrong.code == 1
    assert (
        wrong.err.split()
        == (
            f"error: the Prefect API at {server.url} refuses the credentials (401 Unauthorized); correct "
            "PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
        ).split()
    )
