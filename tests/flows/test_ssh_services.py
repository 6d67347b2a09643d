"""Services on real hosts, behind a gateway on a host of its own."""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from prefect.blocks.system import Secret

from prefect_dstack import (
    create_gateway,
    delete_gateway,
    deploy_service,
    reconcile_services,
    stop_service,
)
from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import (
    CapacityError,
    ConflictError,
    GatewayError,
    HostUnreachableError,
    PrefectDstackError,
)
from prefect_dstack.flows.fleets import apply_fleet, delete_fleet
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.runtimes.base import Launch
from prefect_dstack.runtimes.docker import DockerRuntime
from prefect_dstack.services.gateway_overview import gateway_overview
from prefect_dstack.services.logs import read_logs
from prefect_dstack.services.overview import overview
from prefect_dstack.store import documents
from prefect_dstack.store.sources import resolve_infrastructure
from tests.command_line import CommandLine
from tests.flows.lab import FLEET, GATEWAY, Lab, Requests, answer
from tests.gateways.hosts import machine
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.workloads import spec_of

pytestmark = pytest.mark.testbed


@pytest.fixture
def edge(lab: Lab) -> Iterator[str]:
    """A fleet of all hosts and a gateway, on one private network; the gateway's address."""
    apply_fleet(lab.fleet())
    create_gateway(lab.gateway())
    yield lab.edge.address
    lab.heal()
    delete_gateway(GATEWAY)


def task_runs(server: PrefectServer, name: str, kind: str) -> list[tuple[datetime, datetime]]:
    """When the tasks of one kind ran in the last deployment of a service."""
    found = server.ask(
        "/task_runs/filter",
        flow_runs={"name": {"any_": [f"deploy {name}"]}},
        task_runs={"name": {"like_": f"{kind} "}},
    )
    return [
        (datetime.fromisoformat(run["start_time"]), datetime.fromisoformat(run["end_time"])) for run in found
    ]


def hosts_of(name: str) -> list[str]:
    """Where the replicas of a service run, those that get requests."""
    (service,) = [one for one in overview() if one.name == name]
    return sorted(replica.instance for replica in service.replicas if replica.routed)


def test_three_replicas_on_three_hosts_at_once(
    lab: Lab, edge: str, name: str, prefect_server: PrefectServer
) -> None:
    before = lab.logins()
    endpoint = deploy_service(lab.service(name))
    after = lab.logins()

    assert endpoint.url == f"http://{edge}"
    assert hosts_of(name) == sorted(host.address for host in lab.hosts)
    assert {host: after[host] - before[host] for host in after} == dict.fromkeys(after, 1)
    for kind in ("launch-replica", "wait-until-ready"):
        runs = task_runs(prefect_server, name, kind)
        assert len(runs) == 3
        assert max(begun for begun, _ in runs) < min(ended for _, ended in runs), f"one by one: {kind}"

    with Requests(edge) as requests:
        requests.wait_for_more(60)
    assert not requests.failures, requests.failures[:9]
    assert set(requests.replicas) == {f"{name}-1-{number}" for number in range(3)}
    assert min(requests.replicas.values()) > 10

    assert sorted(read_logs(name, tail=1)) == [f"{name}-1-{n}: listening on port 8000" for n in range(3)]
    follow = read_logs(name, replica=1, follow=True)
    assert next(follow) == "listening on port 8000"
    del follow
    stop_service(name)


def test_without_a_common_network_all_goes_through_tunnels(lab: Lab, name: str) -> None:
    apply_fleet(lab.fleet(network=False))
    create_gateway(lab.gateway(network=False))
    for host in lab.hosts:
        host.only_ssh_from(lab.edge)
    deploy_service(lab.service(name))
    assert all("prefect-dstack-tunnel" in host.read_file("/root/.ssh/authorized_keys") for host in lab.hosts)
    with Requests(lab.edge.address) as requests:
        requests.wait_for_more(60)
        stopped = list(requests.failures)
    assert stopped == []
    assert set(requests.replicas) == {f"{name}-1-{number}" for number in range(3)}
    stop_service(name)
    delete_gateway(GATEWAY)


def test_a_host_that_loses_power_costs_no_request_and_serves_again_when_it_is_back(
    lab: Lab, edge: str, name: str
) -> None:
    deploy_service(lab.service(name))
    lost = lab.hosts[1]
    with Requests(edge) as requests:
        requests.wait_for_more()
        lost.power_off()
        requests.wait_for_more(200)

        (service,) = overview()
        assert (service.state, service.serving, service.wanted) == ("degraded", 2, 3)
        assert any(problem.startswith(f"{lost.address} is gone: ") for problem in service.problems)

        lost.start()
        requests.replicas.clear()
        wait_until(lambda: len(requests.replicas) == 3, 60, "the third replica serves again")
    assert not requests.failures, requests.failures[:9]

    lab.edge.reboot()
    answers = {(wait_until(lambda: answer(edge), 60, "the gateway routes again") or {})["hostname"]}
    for _ in range(20):
        answers.add((answer(edge) or {}).get("hostname"))
    assert {f"{name}-1-{number}" for number in range(3)} <= answers
    stop_service(name)


class Sampling:
    """Counts again and again how many replicas of a service its gateway can use; a context manager.

    Attributes:
        fewest: The smallest number seen.
    """

    def __init__(self, service: str) -> None:
        self.service, self.fewest, self.looks = service, 99, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        with shared_connections():
            gateway = resolve_infrastructure().gateway(GATEWAY).control
            while not self._done.wait(0.1):
                health = gateway.replica_health(self.service).values()
                self.fewest = min(self.fewest, sum(it.status == "UP" for it in health))
                self.looks += 1


def test_a_host_that_loses_power_in_the_middle_of_a_rollout(lab: Lab, edge: str, name: str) -> None:
    deploy_service(lab.service(name))

    def started() -> list[Host]:
        new = ["docker", "ps", "-q", "--filter", f"name=prefect-dstack-{name}-2-"]
        return [host for host in lab.hosts if host.exec(new).stdout]

    with Requests(edge) as requests, Sampling(name) as sampling, ThreadPoolExecutor(1) as pool:
        requests.wait_for_more()
        rollout = pool.submit(deploy_service, lab.service(name, env={"START_DELAY": "3"}))
        (lost, *_) = wait_until(started, 60, "the first new replica is started")
        lost.power_off()
        failure = rollout.exception(180)
        if failure is not None:
            assert "\n" not in str(failure)
            assert lost.address in str(failure)
            assert str(failure).endswith(f"; {name}@1 serves on")
        serves = 2 if failure is None else 1
        requests.wait_for_more(100)
        requests.replicas.clear()
        requests.wait_for_more(60)
    assert not requests.failures, requests.failures[:9]
    assert {replica.rsplit("-", 1)[0] for replica in requests.replicas} == {f"{name}-{serves}"}
    assert len(requests.replicas) == 3, "at full strength on the hosts that are left"
    assert sampling.looks > 50
    # One old replica was on the host; the gateway lost no other.
    assert sampling.fewest == 2
    lost.start()
    reconcile_services()
    (service,) = overview()
    assert (service.serving, service.wanted, service.problems) == (3, 3, [])
    stop_service(name)


def test_a_partition_in_the_middle_of_a_deployment(
    lab: Lab, edge: str, name: str, prefect_server: PrefectServer
) -> None:
    cut = lab.hosts[2]

    def waiting() -> list[Any]:
        runs = {"name": {"like_": f"wait-until-ready {name}"}, "state": {"type": {"any_": ["RUNNING"]}}}
        return prefect_server.ask("/task_runs/filter", task_runs=runs)

    def partition() -> None:
        wait_until(waiting, 60, "its replica is waited for")
        cut.isolate_from(lab.testbed)

    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        partitioned = pool.submit(partition)
        with pytest.raises(PrefectDstackError) as caught:
            deploy_service(lab.service(name, env={"START_DELAY": "8"}))
        partitioned.result()
    assert time.monotonic() - began < 120
    message = str(caught.value)
    assert "\n" not in message
    assert cut.address in message
    assert message.endswith("; nothing of it is left where it can be reached")
    assert [host.exec(["docker", "ps", "-aq"]).stdout for host in lab.hosts[:2]] == ["", ""]

    cut.rejoin(lab.testbed)
    deploy_service(lab.service(name))
    assert hosts_of(name) == sorted(host.address for host in lab.hosts)
    stop_service(name)


def test_files_go_along_but_for_what_git_ignores(lab: Lab, edge: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights.json").write_text('{"hostname": "from a file"}')
    (tmp_path / "model/secret.txt").write_text("x")
    (tmp_path / ".gitignore").write_text("secret.txt\n")
    (tmp_path / ".git").mkdir()
    file = tmp_path / "files.dstack.yml"
    keys = {
        "files": ["model:/srv/model"],
        "commands": ["cd /srv/model", "ls -A", "exec python3 -m http.server 8000"],
        "probes": [{"type": "http", "url": "/weights.json", "interval": "1s"}],
    }
    file.write_text(yaml.safe_dump(lab.service(name, 1, **keys)))
    deploy_service(file)
    assert answer(edge, path="/weights.json") == {"hostname": "from a file"}
    assert answer(edge, path="/secret.txt") is None
    stop_service(name)


def test_the_gateway_is_named_by_address_by_secret_or_is_the_only_one(lab: Lab, edge: str, name: str) -> None:
    Secret(value=edge).save(f"{name}-address", overwrite=True)
    references: dict[str, Any] = {"secret": f"${{{{ secrets.{name}-address }}}}", "address": edge}
    try:
        for number, (how, reference) in enumerate(references.items()):
            deploy_service(lab.service(name, 1, gateway=reference))
            (service,) = overview()
            assert service.gateway == GATEWAY, how
            assert service.revision == number + 1, how
    finally:
        Secret.delete(f"{name}-address")
    stop_service(name)


def test_a_gateway_follows_its_file(lab: Lab, edge: str, name: str) -> None:
    deploy_service(lab.service(name, 1))
    create_gateway(lab.gateway(port=8088))
    assert answer(edge), "what serves is left where it is"
    endpoint = deploy_service(lab.service(name, 1))
    assert endpoint.url == f"http://{edge}:8088"
    assert endpoint.replicas == [f"{name}-1-0"]
    assert answer(edge, 8088)
    assert answer(edge, 80) is None
    stop_service(name)


def test_a_fleet_keeps_the_hosts_on_which_replicas_run(lab: Lab, edge: str, name: str) -> None:
    deploy_service(lab.service(name))
    with pytest.raises(
        ConflictError, match=rf"{name}-1-\d runs on {lab.hosts[2].address}.*stop {name} first"
    ):
        apply_fleet(lab.fleet(*lab.hosts[:2]))
    stop_service(name)
    apply_fleet(lab.fleet(*lab.hosts[:2]))


def test_what_is_gone_for_good_can_be_forgotten(lab: Lab, name: str) -> None:
    apply_fleet(lab.fleet(lab.hosts[0]))
    apply_fleet(lab.fleet(lab.hosts[1], name="second"))
    create_gateway(lab.gateway())
    deploy_service(lab.service(name, 1, fleets=[FLEET]))
    lab.edge.stop_ssh()
    lab.hosts[1].stop_ssh()

    (row,) = gateway_overview()
    assert lab.edge.address in row.state
    (service,) = overview()
    assert service.state == "down"
    with pytest.raises(GatewayError, match=rf"{lab.edge.address}.*prefect-dstack stop {name} --force$"):
        stop_service(name)
    stop_service(name, force=True)
    assert lab.hosts[0].check(["docker", "ps", "-a", "--format", "{{.Names}}"]) == ""
    with pytest.raises(GatewayError, match=rf"prefect-dstack gateway delete {GATEWAY} --force$"):
        delete_gateway(GATEWAY)
    delete_gateway(GATEWAY, force=True)
    with pytest.raises(HostUnreachableError, match=r"prefect-dstack fleet delete second --force$"):
        delete_fleet("second")
    delete_fleet("second", force=True)

    # What a gateway that came back after all has kept is taken over by one of that name.
    lab.edge.restart_ssh()
    lab.hosts[1].restart_ssh()
    create_gateway(lab.gateway())
    delete_gateway(GATEWAY)


class TestHostsThatCannotBeUsed:
    def test_are_named_with_a_remedy_in_one_line(self, lab: Lab, tmp_path: Path) -> None:
        host = lab.hosts[0]
        host.add_user("guest")
        stranger = tmp_path / "stranger"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
        changed = "SHA256:" + "a" * 43
        cases: dict[str, tuple[dict[str, Any], list[str]]] = {
            "changed host key": ({"host_key": changed}, [changed, host.fingerprint]),
            "wrong key": ({"identity_file": str(stranger)}, ["refused the user `root`", "authorized_keys"]),
            "closed port": ({"port": 23}, ["connection refused", "does its SSH server run"]),
            "no rights": ({"user": "guest"}, ["guest", "usermod -aG docker guest"]),
        }
        try:
            for what, (keys, words) in cases.items():
                fleet = lab.fleet(host, network=False)
                fleet["ssh_config"]["hosts"] = [lab.member(host, **keys)]
                with pytest.raises(PrefectDstackError) as caught:
                    apply_fleet(fleet)
                message = str(caught.value)
                assert "\n" not in message, what
                for word in [host.address, *words]:
                    assert word in message, f"{what}: {message}"
                gateway = lab.gateway(network=False)
                gateway["host"] = lab.member(host, **keys)
                with pytest.raises(PrefectDstackError) as caught:
                    create_gateway(gateway)
                assert host.address in str(caught.value), what
                assert "\n" not in str(caught.value), what
        finally:
            host.check(["userdel", "-r", "-f", "guest"])
        assert blocks() == []

    def test_the_command_line_exits_with_1(self, lab: Lab, cli: CommandLine, tmp_path: Path) -> None:
        file = tmp_path / "fleet.dstack.yml"
        file.write_text(yaml.safe_dump(lab.fleet(lab.hosts[0])))
        lab.hosts[0].stop_ssh()
        try:
            outcome = cli("apply", "-f", file, "-y")
        finally:
            lab.hosts[0].restart_ssh()
        assert outcome.code == 1
        (error,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
        assert f"{lab.hosts[0].address}:22): connection refused" in error
        assert blocks() == []

    def test_no_docker(self, lab: Lab) -> None:
        host = lab.testbed.host("bare", docker="absent")
        try:
            with pytest.raises(PrefectDstackError, match=rf"{host.address}.*has no Docker: install it"):
                apply_fleet(lab.fleet(host, network=False))
            gateway = lab.gateway(network=False)
            gateway["host"] = lab.member(host)
            with pytest.raises(PrefectDstackError, match=rf"{host.address}.*has no Docker: install it"):
                create_gateway(gateway)
            assert host.check(["sh", "-c", "ls /run /var/lib | grep prefect-dstack; true"]) == ""
        finally:
            lab.testbed.remove(host)
        assert blocks() == []

    def test_a_full_disk(self, lab: Lab, edge: str, name: str) -> None:
        host = lab.testbed.host("full", disk=400_000_000)
        try:
            load_image(host, "app")
            host.fill_disk()
            with pytest.raises(PrefectDstackError, match=rf"{host.address}.*disk.*docker system prune"):
                apply_fleet(lab.fleet(host, network=False, name="full"))
            assert blocks() == [GATEWAY, FLEET]
        finally:
            lab.testbed.remove(host)


def blocks() -> list[str]:
    """The gateways and fleets that are known."""
    from prefect_dstack.blocks import DstackGateway, DstackSshFleet

    return [*documents.names(DstackGateway), *documents.names(DstackSshFleet)]


def test_a_gpu_is_given_once_however_many_deployments_choose_it(hosts: Lab, tmp_path: Path) -> None:
    host = hosts.hosts[0]
    labels = {**Stamp(service="first", revision=1, replica=0).labels(), "prefect-dstack.gpu-devices": "GPU-a"}
    options = [option for name, value in labels.items() for option in ("--label", f"{name}={value}")]
    loaded = load_configuration({"name": "second", **hosts.service("second", 1)})
    assert isinstance(loaded, ServiceConfiguration)
    launch = Launch(
        stamp=Stamp(service="second", revision=1, replica=0),
        spec=spec_of(loaded, tmp_path),
        gpu_devices=("GPU-a", "GPU-b"),
    )
    # Another deployment holds the host's lock, and creates its container before it lets go.
    script = f"echo held; sleep 1; docker create {' '.join(map(shlex.quote, options))} testbed/app:1"
    other = host.popen(["flock", "/run", "sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with (
            shared_connections(),
            pytest.raises(CapacityError, match=r"first-1-0 has just taken the GPU GPU-a"),
        ):
            DockerRuntime().launch(machine(host), launch, lambda _: None)
        (created,) = host.check(["docker", "ps", "-aq"]).split()
        assert other.stdout.readline().startswith(created)
    finally:
        other.communicate()
        hosts.clear()
