"""A gateway on a host of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways.access_log import is_request_of
from prefect_dstack.gateways.counters import CODES
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.host import HostPlace, gateways_on
from prefect_dstack.gateways.route import Route, RouteReplica
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.hosts.pool import close_connections
from tests.gateways.hosts import answers, machine, run_app, traces
from tests.polling import wait_until
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed

pytestmark = pytest.mark.testbed

STATE = GatewayState(name="edge", bind_address="*", base_port=80)
PORT = 20080


@pytest.fixture(scope="module")
def hosts(testbed: Testbed) -> Iterator[tuple[Host, Host]]:
    edge, inner = testbed.hosts("edge", "edge-inner")
    load_image(edge, "haproxy")
    load_image(inner, "app")
    edge.add_user("admin")
    edge.write_file("/etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD:ALL\n", mode=0o440)
    run_app(inner, inner.address, PORT)
    yield edge, inner
    close_connections()
    testbed.remove(edge, inner)


@pytest.fixture(params=["root", "admin"])
def gateway(hosts: tuple[Host, Host], request: pytest.FixtureRequest) -> Iterator[Gateway]:
    if request.param != "root" and hosts[0].exec(["sh", "-c", "command -v sudo"]).returncode:
        pytest.skip("needs the package sudo")
    gateway = Gateway(HostPlace(machine(hosts[0], request.param), "edge"))
    before = traces(hosts[0])
    gateway.ensure_running(STATE)
    yield gateway
    gateway.destroy()
    assert traces(hosts[0]) == before


def publish(gateway: Gateway, host: Host, service: str = "hello", port: int = 80) -> None:
    replica = RouteReplica(name="a", address=host.address, port=PORT)
    route = Route(service=service, port=port, replicas={"a": replica})
    gateway.change(lambda state: state.with_route(route))


def test_it_serves_and_takes_changes(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    edge, inner = hosts
    assert httpx.get(f"http://{edge.address}/").status_code == 404
    publish(gateway, inner)
    wait_until(answers(f"http://{edge.address}/"), 10, "the route answers")
    assert gateway.replica_health("hello")["a"].status == "UP"
    assert gateways_on(machine(edge)) == ["edge"]
    gateway.change(lambda state: state.without_route("hello"))
    wait_until(lambda: httpx.get(f"http://{edge.address}/").status_code == 404, 10, "the route is gone")


def test_its_access_log_is_in_the_containers(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    edge, inner = hosts
    replica = RouteReplica(name="hello-1-0", address=inner.address, port=PORT)
    route = Route(service="hello", port=80, access_log=True, replicas={replica.name: replica})
    gateway.change(lambda state: state.with_route(route))
    wait_until(answers(f"http://{edge.address}/"), 10, "the route answers")
    httpx.get(f"http://{edge.address}/seen?key=secret")

    def requests() -> list[str]:
        return [line for line in gateway.place.log() if is_request_of(line, "hello")]

    lines = wait_until(lambda: found if "seen" in "".join(found := requests()) else None, 10, "it is written")
    assert json.loads(lines[-1])["path"] == "/seen"
    assert "secret" not in "".join(lines)
    assert list(gateway.place.log(tail=1)) == lines[-1:]


def test_its_files_and_sockets_are_roots_alone(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    place = gateway.place
    assert isinstance(place, HostPlace)
    shown = hosts[0].check(["find", place.directory, "-printf", "%U %m %f\n"]).splitlines()
    assert len(shown) > 5
    assert all(line.startswith(("0 600 ", "0 700 ")) for line in shown), shown
    assert hosts[0].listening_ports() == {"tcp 0.0.0.0:22", "tcp [::]:22", "tcp 0.0.0.0:80"}


def test_a_reboot_brings_back_every_route(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    edge, inner = hosts
    publish(gateway, inner)
    publish(gateway, inner, "other", 81)
    edge.reboot()
    wait_until(answers(f"http://{edge.address}/"), 30, "the first route is back")
    wait_until(answers(f"http://{edge.address}:81/"), 30, "the second route is back")
    publish(gateway, inner, "third", 82)
    wait_until(answers(f"http://{edge.address}:82/"), 10, "a new route answers")


def test_haproxy_that_crashed_is_back(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    edge, inner = hosts
    publish(gateway, inner)
    wait_until(answers(f"http://{edge.address}/"), 10, "the route answers")
    edge.check(["pkill", "-9", "-o", "haproxy"])
    wait_until(answers(f"http://{edge.address}/"), 20, "the route answers again")


def test_a_bad_configuration_is_refused_with_the_reason(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    with pytest.raises(GatewayError, match=r"gateway 'edge' on edge: HAProxy refuses .*nonsense") as error:
        gateway.place.check(b"nonsense\n")
    assert "\n" not in str(error.value)


def test_files_are_written_whole_and_read_back(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    place = gateway.place
    contents = {"certificates/a.pem": b"\x00" * 100_000, "b c": b"x", "-d": b""}
    place.write(contents)
    assert {name: place.read(name) for name in contents} == contents
    assert place.read("missing") is None
    for name in contents:
        place.remove(name)
    assert place.read("b c") is None
    place.remove("missing")


def test_a_port_that_something_else_holds_is_known(hosts: tuple[Host, Host], gateway: Gateway) -> None:
    assert not gateway.place.port_is_free(22, "*")
    assert gateway.place.port_is_free(8022, "*")


def test_only_one_deployer_changes_it_at_a_time(
    hosts: tuple[Host, Host], gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dstack.gateways.host.LOCK_PATIENCE", 1.0)
    conflict = pytest.raises(GatewayError, match="others here have held")
    with gateway.place.lock(), conflict, gateway.place.lock():
        pass
    with gateway.place.lock():
        pass


def test_without_its_image_it_says_what_to_do(make_host: Callable[..., Host]) -> None:
    host = make_host("edge-bare")
    with pytest.raises(GatewayError, match=r"cannot pull haproxy:2\.8.*docker load"):
        Gateway(HostPlace(machine(host), "edge")).ensure_running(STATE)


def test_its_counters_are_read_and_a_former_process_is_kept(
    hosts: tuple[Host, Host], gateway: Gateway
) -> None:
    publish(gateway, hosts[1])
    assert httpx.get(f"http://{hosts[0].address}/").status_code == 200
    (sample,) = gateway.samples()[0]
    assert sum(sample.replicas["hello"]["a"].counters[code] for code in CODES) == 1
    held = gateway.place.hold(5)

    publish(gateway, hosts[1], service="other", port=8081)

    former = [it.process for it in gateway.samples()[0] if not it.current]
    assert former == [sample.process]
    held.close()
    wait_until(lambda: [it.current for it in gateway.samples()[0]] == [True], 20, "it has ended")
