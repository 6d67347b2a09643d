"""A gateway comes back by itself, with all that it had, and leaves nothing when it goes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from prefect_dstack.errors import CertificateError, ConflictError, GatewayError, NotFoundError
from prefect_dstack.gateways.gateway import ANSWER_TIMEOUT, Gateway
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.gateways.template import render
from prefect_dstack.hosts.ports import free_port, port_is_free
from tests.gateways.application import Application, Load, request
from tests.gateways.conftest import replica, serve
from tests.polling import wait_until

pytestmark = pytest.mark.integration

Start = Callable[[str], Application]


def processes(gateway: Gateway) -> list[psutil.Process]:
    directory = str(place(gateway).directory)
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == directory or directory in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def place(gateway: Gateway) -> LocalPlace:
    assert isinstance(gateway.place, LocalPlace)
    return gateway.place


def haproxies(gateway: Gateway) -> list[psutil.Process]:
    return [it for it in processes(gateway) if "haproxy" in it.name()]


def answers(port: int) -> bool:
    try:
        return request(port).status == 200
    except OSError:
        return False


@pytest.mark.parametrize("victim", ["master", "worker", "all"])
def test_a_killed_gateway_is_back_with_its_routes(
    gateway: Gateway, port: int, application: Start, victim: str
) -> None:
    serve(gateway, application("r0"))
    gateway.change(lambda state: state.with_replica("hello", replica(application("r1"))))
    worker = gateway._workers().current[0]
    pids = [it.pid for it in haproxies(gateway)]
    master = next(pid for pid in pids if pid != worker)
    for pid in {"master": [master], "worker": [worker], "all": pids}[victim]:
        # A worker may end by itself as soon as its master is gone.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: answers(port) and gateway._ready(), 15)
    wait_until(lambda: worker not in [it.pid for it in haproxies(gateway)])
    assert set(gateway.replica_health("hello")) == {"r0", "r1"}
    gateway.change(lambda state: state.without_replica("hello", "r0"))
    assert {request(port).body for _ in range(4)} == {b"r1"}


def test_a_gateway_whose_supervisor_was_killed_is_started_again(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, application("r0"))
    for process in processes(gateway):
        process.kill()
    wait_until(lambda: not haproxies(gateway))
    state = gateway.ensure_running(GatewayState(name="local", base_port=1))
    assert state.base_port == port
    assert answers(port)


def test_a_change_starts_a_gateway_that_is_gone(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("r0"))
    gateway.place.stop()
    gateway.change(lambda state: state.with_weight("hello", "r0", 50))
    assert answers(port)


def test_a_gateway_that_is_slow_to_answer_follows_its_state_all_the_same(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, application("r0"))
    other = application("r1")
    worker = gateway._workers().current[0]
    master = next(it for it in haproxies(gateway) if it.pid != worker)
    master.suspend()
    wake = threading.Timer(1.5 * ANSWER_TIMEOUT, master.resume)
    wake.start()
    gateway.change(lambda state: state.with_replica("hello", replica(other)).without_replica("hello", "r0"))
    wake.join()
    assert {request(port).body for _ in range(4)} == {b"r1"}
    assert not gateway.is_unfinished()


def test_only_its_owner_can_read_or_steer_it(gateway: Gateway, application: Start) -> None:
    serve(gateway, application("r0"))
    directory = place(gateway).directory
    sockets = place(gateway)._master_socket().parent
    for path in (directory, sockets):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = [path for root in (directory, sockets) for path in root.rglob("*") if not path.is_dir()]
    assert {"haproxy.cfg", "state.json", "master.sock", "successor.sock"} <= {path.name for path in files}
    assert [path.name for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_no_admin_port_is_open(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("r0"))
    wait_until(lambda: not gateway._workers().old)
    listening = {
        connection.laddr.port
        for process in haproxies(gateway)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {port}


def test_a_removal_that_is_cut_off_leaves_a_gateway_that_can_be_removed(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = gateway.state()
    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            gateway.destroy()

    assert gateway.state() == before
    gateway.destroy()
    assert not place(gateway).directory.exists()


def test_a_destroyed_gateway_leaves_nothing(gateway: Gateway, port: int, application: Start) -> None:
    serve(gateway, application("r0"))
    sockets = place(gateway)._master_socket().parent
    gateway.destroy()
    assert processes(gateway) == []
    assert not place(gateway).directory.exists()
    assert not (sockets / "master.sock").exists()
    assert port_is_free(port)
    with pytest.raises(NotFoundError, match="does not exist"):
        gateway.state()


def test_a_path_too_long_for_a_socket_is_no_obstacle(
    haproxy: str, tmp_path: Path, application: Start
) -> None:
    port = free_port()
    gateway = Gateway(LocalPlace("local", tmp_path / ("long" * 20) / "gateway"))
    gateway.ensure_running(GatewayState(name="local", base_port=port))
    try:
        serve(gateway, application("r0"))
        gateway.change(lambda state: state.with_route(Route(service="other", port=free_port())))
        assert answers(port)
    finally:
        gateway.destroy()


def test_a_port_of_another_program_is_refused_before_anything_changes(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, application("r0"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(
            ConflictError, match=f"port {taken} of gateway 'local' .* in use by another program"
        ):
            gateway.change(lambda state: state.with_route(Route(service="other", port=taken)))
    assert set(gateway.state().routes) == {"hello"}
    assert answers(port)


def test_a_bad_configuration_never_replaces_a_good_one(
    gateway: Gateway, port: int, application: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(gateway, application("r0"))
    before = {path: path.read_bytes() for path in place(gateway).directory.glob("haproxy.cfg*")}
    good = render(gateway.state())
    with monkeypatch.context() as patch:
        patch.setattr(
            "prefect_dstack.gateways.gateway.render",
            lambda state: (
                good if len(state.routes) == 1 else {**good, "haproxy.cfg": b"global\n    nonsense\n"}
            ),
        )
        with pytest.raises(GatewayError, match=r"HAProxy refuses the configuration: .*nonsense"):
            gateway.change(lambda state: state.with_route(Route(service="other", port=free_port())))
    assert {path: path.read_bytes() for path in place(gateway).directory.glob("haproxy.cfg*")} == before
    assert set(gateway.state().routes) == {"hello"}
    assert answers(port)


def test_a_change_that_was_cut_short_is_completed_by_the_next_one(
    gateway: Gateway, port: int, application: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(gateway, application("r0"))
    second = application("r1")

    def cut_short(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Gateway, "_run", cut_short)
        with pytest.raises(KeyboardInterrupt):
            gateway.change(lambda state: state.with_replica("hello", replica(second)))
    assert set(gateway.replica_health("hello")) == {"r0"}
    gateway.ensure_running(gateway.state())
    assert set(gateway.replica_health("hello")) == {"r0", "r1"}


def test_a_command_that_fails_is_made_good_by_a_reload(
    gateway: Gateway, port: int, application: Start
) -> None:
    serve(gateway, application("r0"))
    worker = gateway._workers().current[0]
    gateway._master(f"@!{worker} add server service:hello/r1 127.0.0.1:9")
    gateway.change(lambda state: state.with_replica("hello", replica(application("r1"))))
    assert gateway._workers().current != (worker,)
    assert {request(port).body for _ in range(8)} == {b"r0", b"r1"}


def test_changes_of_many_deployments_at_once_all_happen(gateway: Gateway, application: Start) -> None:
    serve(gateway, application("r0"))
    added = [application(f"n{number}") for number in range(8)]
    threads = [
        threading.Thread(
            target=lambda it=it: Gateway(gateway.place).change(
                lambda state: state.with_replica("hello", replica(it))
            )
        )
        for it in added
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(gateway.replica_health("hello")) == {"r0", *(it.name for it in added)}
    assert set(gateway.state().routes["hello"].replicas) == set(gateway.replica_health("hello"))


def test_a_gateway_that_is_being_changed_makes_others_wait_and_then_say_so(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_dstack.gateways.local.LOCK_PATIENCE", 0.05)
    with gateway.place.lock(), pytest.raises(GatewayError, match="somebody else has been changing it"):
        gateway.change(lambda state: state)


def test_a_damaged_state_is_named(gateway: Gateway) -> None:
    state = json.loads(gateway.place.read("state.json") or b"")
    gateway.place.write({"state.json": json.dumps({**state, "base_port": "a\nb"}).encode()})
    with pytest.raises(GatewayError, match=r"state\.json cannot be read: base_port: .*damaged") as caught:
        gateway.state()
    assert "\n" not in str(caught.value)


def test_a_certificate_that_haproxy_cannot_read_is_refused(gateway: Gateway) -> None:
    https_port = free_port()
    gateway.change(lambda state: state.model_copy(update={"https_port": https_port}))
    with pytest.raises(CertificateError, match="certificate 'x' cannot be used"):
        gateway.install_certificate("x", b"not a certificate\n")
    assert gateway.state().certificates == ()


def test_the_load_of_a_restart_is_only_what_was_under_way(
    gateway: Gateway, port: int, application: Start
) -> None:
    """A kill is no reload; but the gateway must be back within seconds, and keep its word afterwards."""
    serve(gateway, application("r0"))
    with Load(port, clients=4) as load:
        os.kill(gateway._workers().current[0], signal.SIGKILL)
        wait_until(lambda: answers(port), 10)
        failed = len(load.failures)
        done = load.done
        wait_until(lambda: load.done > done + 50)
        assert len(load.failures) - failed <= 4


def test_two_gateways_never_share_a_port(
    gateway: Gateway, port: int, application: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has looked at the port before this one took it."""
    serve(gateway, application("r0"))
    other = Gateway(LocalPlace("local", tmp_path / "other"))
    state = GatewayState(name="local", base_port=port)
    with monkeypatch.context() as context:
        context.setattr(LocalPlace, "port_is_free", lambda *_: True)
        with pytest.raises(GatewayError):
            other.ensure(state, lambda state: state.with_route(Route(service="other", port=port)))
    assert {request(port).body for _ in range(8)} == {b"r0"}
    assert not place(other).directory.exists()


def test_a_port_that_was_taken_meanwhile_is_chosen_again(gateway: Gateway, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        choices = iter([taken.getsockname()[1], free_port()])

        def chosen(state: GatewayState) -> GatewayState:
            return state.with_route(Route(service="hello", port=next(choices)))

        state = gateway.ensure(GatewayState(name="local", base_port=port), chosen)

    assert state == gateway.state()
    assert next(choices, None) is None
