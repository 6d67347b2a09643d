"""A gateway that an earlier version of this project has started is taken over, not given up."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.gateways.template import CONFIGURATION, render
from tests.gateways.application import Application
from tests.gateways.conftest import serve


def test_a_gateway_without_the_files_of_this_version_gets_them(
    gateway: Gateway, port: int, application: Callable[[str], Application]
) -> None:
    serve(gateway, application("one"))
    place = gateway.place
    assert isinstance(place, LocalPlace)
    earlier = place.read(CONFIGURATION)
    assert earlier is not None
    for name in render(gateway.state()):
        if name != CONFIGURATION:
            place.remove(name)
    place.write({CONFIGURATION: b"# an earlier version\n" + earlier})

    state = gateway.ensure_running(GatewayState(name="local", base_port=port))

    assert list(state.routes) == ["hello"]
    assert all(place.read(name) == data for name, data in render(state).items())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.status == 200
