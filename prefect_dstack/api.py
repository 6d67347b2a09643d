"""The Prefect API to talk to: the configured one, else a server on this machine, started once and reused."""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
import psutil

from prefect_dstack.asynchronous import refuse_await
from prefect_dstack.errors import OrchestratorError, PrefectDstackError
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.output import read_output
from prefect_dstack.hosts.ports import port_is_free
from prefect_dstack.settings import settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = [
    "answers",
    "check",
    "connect",
    "connected",
    "explained",
    "join_local_server",
    "local_server_url",
    "reading",
    "start_local_server",
    "stop_local_server",
]

P = ParamSpec("P")
R = TypeVar("R")

START_TIMEOUT = 180.0
HEALTH_TIMEOUT = 5.0
ATTEMPTS = 3
LOG_LINES = 20


def _print(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


def connect(report: Callable[[str], None] | None = None) -> str:
    """Ensure that there is a Prefect API to talk to, for this whole process.

    It is the configured one, else the local server, which is started if it does not run. Scripts whose own
    flow calls those of this package call it before, unless the local server runs already.

    Args:
        report: Told when a server has to be started; default: a line on standard error.

    Returns:
        The URL of the API.

    Raises:
        OrchestratorError: If the configured API does not answer or refuses, or no server can be started.

    Example:
        ```python
        from prefect import flow
        from prefect_dstack import connect, deploy_service


        @flow
        def train_and_deploy() -> str:
            return deploy_service("serve.dstack.yml").url


        if __name__ == "__main__":
            connect()
            train_and_deploy()
        ```
    """
    from prefect.settings import get_current_settings

    configured = get_current_settings().api.url
    if configured is not None:
        check(configured)
        return configured
    url = local_server_url() or start_local_server(report or _print)
    check(url)
    _use(url)
    return url


def connected(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that is no flow `connect` when it is called outside of a flow run.

    Args:
        function: What asks the Prefect API something.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from prefect.context import FlowRunContext

        caller = inspect.currentframe()
        refuse_await(None if caller is None else caller.f_back, function.__name__)
        if FlowRunContext.get() is None:
            connect()
        return function(*args, **kwargs)

    return call


def join_local_server() -> None:
    """Use the local server for this whole process, if it runs and no API is configured; else do nothing.

    Prefect would start a temporary server beside it for a flow that is not of this package, and for all that
    this flow calls.
    """
    from prefect.settings import get_current_settings

    with contextlib.suppress(PrefectDstackError):
        if get_current_settings().api.url is None and (url := local_server_url()) is not None:
            _use(url)


def _use(url: str) -> None:
    from prefect.context import refresh_global_settings_context

    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()


def local_server_url() -> str | None:
    """Find the local server.

    Returns:
        The URL of its API; None if it does not run.
    """
    url = _recorded_url()
    return url if url is not None and _is_ours(url) and answers(url) else None


def start_local_server(report: Callable[[str], None]) -> str:
    """Start the local server in the background; it outlives this process.

    Args:
        report: Told of the progress.

    Returns:
        The URL of its API, which answers.

    Raises:
        OrchestratorError: If it ends again and again, or does not answer in time.
    """
    with _lock(_directory()):
        url = local_server_url()
        if url is not None:
            return url
        deadline = time.monotonic() + START_TIMEOUT
        url = _recorded_url() if _process().alive else None
        url = url or _start()
        report(f"starting a Prefect server on this machine, once: {url.removesuffix('/api')}")
        restarts = _process().restarts
        while time.monotonic() < deadline:
            if _is_ours(url) and answers(url):
                return url
            ended = _process().restarts - restarts
            if ended and not port_is_free(_port(url)) and not _is_ours(url):
                # Somebody else has taken the port since it was chosen.
                supervisor.stop(_directory() / "process")
                url, restarts = _start(), 0
            elif ended >= ATTEMPTS:
                supervisor.stop(_directory() / "process")
                raise OrchestratorError(f"the local Prefect server does not start: {_last_words()}")
            time.sleep(0.2)
    raise OrchestratorError(
        f"the local Prefect server does not answer at {url} within {START_TIMEOUT:.0f} s: {_last_words()}"
    )


def stop_local_server() -> bool:
    """Stop the local server; services go on serving without it.

    Returns:
        Whether there was one.
    """
    directory = _directory()
    alive = supervisor.status(directory / "process").alive
    supervisor.stop(directory / "process")
    return alive


def _directory() -> Path:
    return settings().home / "server"


def _process() -> supervisor.ProgramStatus:
    return supervisor.status(_directory() / "process")


def _recorded_url() -> str | None:
    try:
        return (_directory() / "url").read_text()
    except FileNotFoundError:
        return None


def _port(url: str) -> int:
    return urlsplit(url).port or 80


def _is_ours(url: str) -> bool:
    """Return whether it is our server that listens there, and not one that came first."""
    pid = _process().pid
    if pid is None:
        return False
    with contextlib.suppress(psutil.Error):
        server = psutil.Process(pid)
        return any(
            connection.laddr.port == _port(url) and connection.status == psutil.CONN_LISTEN
            for process in [server, *server.children(recursive=True)]
            for connection in process.net_connections("tcp")
        )
    return False


def _start() -> str:
    from prefect.settings import get_current_settings

    first = get_current_settings().server.api.port
    # Controllers, workers and flow runs know it by its address.
    recorded = _recorded_url()
    known = first if recorded is None else max(first, _port(recorded))
    port = next(port for port in itertools.chain([known], range(first, 65536)) if port_is_free(port))
    url = f"http://127.0.0.1:{port}/api"
    (_directory() / "url").write_text(url)
    supervisor.start(_directory() / "process", _program(port, _directory()))
    return url


def _last_words() -> str:
    directory = _directory() / "process"
    lines = [line.strip() for line in read_output(directory, tail=LOG_LINES) if line.strip()]
    return f"{lines[-1] if lines else 'it wrote nothing'}; see {directory / 'output.log'}"


def _program(port: int, directory: Path) -> supervisor.Program:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in ("HOME", "LANG", "PATH", "TMPDIR", "TZ", "USER")
        or (name.startswith("PREFECT_") and name != "PREFECT_API_URL")
    }
    return supervisor.Program(
        arguments=[
            *(sys.executable, "-m", "prefect", "server", "start"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        environment={
            # Leases in memory would be lost with the server, and a service's lock with them.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Without it the UI asks port 4200, whatever the server's own is.
            "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
            "NO_COLOR": "1",
            **inherited,
        },
        working_directory=directory,
    )


def answers(url: str) -> bool:
    """Return whether a Prefect API answers, be it only that somebody else may use it.

    Args:
        url: Its URL.

    Returns:
        Whether it says that it is healthy.
    """
    with _client(url) as client:
        return client.api_healthcheck() is None


def check(url: str) -> None:
    """Send a request to a Prefect API, with the credentials and certificates that are configured for Prefect.

    Args:
        url: Its URL.

    Raises:
        OrchestratorError: If it does not answer, or refuses; the message says what to do.
    """
    with _client(url) as client, explained(url):
        client.read_flows(limit=1)


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the errors of requests to a Prefect API into ones that a person can act on.

    Args:
        url: The URL of the API.

    Raises:
        OrchestratorError: If it does not answer, or refuses; the message says what to do.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise OrchestratorError(f"the Prefect API at {url} {_refusal(error.response)}") from error
    except httpx.HTTPError as error:
        raise OrchestratorError(f"the Prefect API at {url} {_silence(error)}") from error
    except ValueError as error:
        raise OrchestratorError(
            f"what answers at {url} is no Prefect API; correct PREFECT_API_URL, which ends with /api"
        ) from error


@contextlib.contextmanager
def reading(report: Callable[[str], None] | None = None) -> Iterator[str]:
    """Use the Prefect API as `connect` does, for commands that only read.

    Whether it answers is learned from what they ask.

    Args:
        report: Told when a server has to be started.

    Yields:
        The URL of the API.

    Raises:
        OrchestratorError: If it does not answer, or refuses.
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url or connect(report)
    with explained(url):
        yield url


def _refusal(response: httpx.Response) -> str:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code in (401, 403):
        return f"refuses the credentials ({status}); correct PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
    return f"answers {status}; read its log, or correct PREFECT_API_URL"


def _silence(error: httpx.HTTPError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            "has a certificate that is not trusted; name the authority's file in PREFECT_API_SSL_CERT_FILE "
            f"({error})"
        )
    reason = str(error) or type(error).__name__
    return f"does not answer; start it, or unset PREFECT_API_URL ({reason})"


@contextlib.contextmanager
def _client(url: str) -> Iterator[SyncPrefectClient]:
    """Create Prefect's own client, as its settings for certificates, headers and credentials are many."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings={"timeout": HEALTH_TIMEOUT}, sync_client=True) as client,
    ):
        yield client


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
