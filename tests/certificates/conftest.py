from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace, haproxy_binary
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.hosts.ports import free_port
from tests.certificates.pebble import Pebble, missing, pebble

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def haproxy() -> str:
    try:
        return haproxy_binary()
    except GatewayError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def http_port() -> int:
    """The port at which the ACME server looks for the answers to HTTP-01."""
    return free_port()


@pytest.fixture(scope="session")
def acme_server(tmp_path_factory: pytest.TempPathFactory, http_port: int) -> Iterator[Pebble]:
    """A real ACME server."""
    if reason := missing():
        pytest.skip(reason)
    with pebble(tmp_path_factory.mktemp("pebble"), http_port) as server:
        yield server


@pytest.fixture
def acme(acme_server: Pebble, monkeypatch: pytest.MonkeyPatch) -> Pebble:
    """The same, trusted."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(acme_server.trusted))
    return acme_server


@pytest.fixture
def gateway(haproxy: str, tmp_path: Path, http_port: int) -> Iterator[Gateway]:
    """A running gateway with a domain, where the ACME server looks for it."""
    gateway = Gateway(LocalPlace("tls", tmp_path / "gateway"))
    gateway.ensure_running(
        GatewayState(
            name="tls",
            bind_address="*",
            base_port=http_port,
            https_port=free_port(),
            domain="example.org",
        )
    )
    yield gateway
    gateway.destroy()
