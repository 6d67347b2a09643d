"""A gateway that is gone while its replicas run: told, and started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from prefect_dstack import Endpoint, create_gateway, delete_gateway, reconcile_services
from prefect_dstack.blocks import DstackGateway
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.hosts.ports import free_port
from prefect_dstack.services.overview import overview
from prefect_dstack.store import documents
from prefect_dstack.store.sources import resolve_infrastructure
from tests.flows.conftest import get
from tests.home import Home
from tests.polling import wait_until

pytestmark = pytest.mark.integration


def test_a_gateway_that_was_killed_for_good_is_started_by_reconcile_and_by_apply(
    deploy: Callable[..., Endpoint], home: Home, name: str
) -> None:
    def kill_the_gateway() -> None:
        for process in home.processes():
            if "haproxy" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
        place = LocalPlace("local", home.state / "gateways" / "local")
        wait_until(lambda: not place.running(), 10, "the gateway is gone")

    endpoint = deploy()
    for repair in (reconcile_services, deploy):
        kill_the_gateway()
        (service,) = (it for it in overview() if it.name == name)
        assert (service.state, service.serving) == ("down", 0)
        assert "gateway local does not run" in service.problems[0]
        if repair is reconcile_services:
            assert reconcile_services(dry_run=True) == [f"{name}: start gateway local"]
        repair()
        assert get(endpoint.url)["revision"] == "1"
        (service,) = (it for it in overview() if it.name == name)
        assert (service.state, service.problems) == ("serving", [])


def test_a_stopped_service_may_outlive_its_gateway(
    deploy: Callable[..., Endpoint], stop: Callable[[], None], name: str
) -> None:
    front = f"g{name}"
    create_gateway({"type": "gateway", "name": front, "backend": "local", "port": free_port()})
    deploy(gateway=front)
    stop()
    delete_gateway(front)
    (service,) = (it for it in overview() if it.name == name)
    assert (service.state, service.problems) == ("stopped", [])
    assert [line for line in reconcile_services() if name in line] == []


def test_a_service_whose_gateway_is_gone_is_deployed_to_another(
    deploy: Callable[..., Endpoint], name: str
) -> None:
    front = f"g{name}"
    create_gateway({"type": "gateway", "name": front, "backend": "local", "port": free_port()})
    deploy()
    resolve_infrastructure().gateway(front).destroy()
    documents.delete(DstackGateway, front)
    moved = deploy()
    assert get(moved.url)["revision"] == "1"
    (service,) = (it for it in overview() if it.name == name)
    assert (service.state, service.gateway, service.problems) == ("serving", "local", [])
