"""The backend with real hosts behind the instances."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dstack.backends.aws import AwsBackend, AwsGateways
from prefect_dstack.backends.aws.firewall import REPLICA_PORT
from prefect_dstack.backends.base import Instance
from prefect_dstack.configurations import GatewayConfiguration, ServiceConfiguration
from prefect_dstack.configurations.ports import ServicePort
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import requirements_of
from prefect_dstack.errors import HostKeyError, HostNotReadyError, ProvisioningError
from prefect_dstack.hosts.keys import generate_key_pair
from prefect_dstack.hosts.pool import close_connections
from prefect_dstack.runtimes.base import Launch
from prefect_dstack.runtimes.docker import DockerRuntime
from tests.polling import wait_until
from tests.testbed.ec2.account import Account
from tests.workloads import spec_of

pytestmark = pytest.mark.testbed

STAMP = Stamp(service="hello", revision=1, replica=0, flow_run="flow-run-1")
SERVICE = ServiceConfiguration(
    port=8000, image="app", resources={"gpu": "24GB"}, instance_types=["g5.xlarge"], spot_policy="auto"
)
NEEDS = requirements_of(SERVICE)


@pytest.fixture
def backend(aws_with_hosts: Account, home: Path) -> Iterator[AwsBackend]:
    yield aws_with_hosts.backend(home, boot_timeout=120)
    close_connections()


def reachable(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def serve(account: Account, instance: Instance, port: int) -> None:
    """Let something listen on every address of an instance."""
    server = ["busybox", "httpd", "-p", str(port), "-h", "/srv"]
    assert account.order("exec", instance=instance.id, command=server)["exit_code"] == 0


def test_a_machine_answers_with_the_key_it_was_given_and_leaves_nothing(
    aws_with_hosts: Account, backend: AwsBackend, told: list[str]
) -> None:
    instance = backend.provision(backend.offers(NEEDS), STAMP, NEEDS, told.append)
    machine = backend.machine(instance)
    assert machine.run(["id", "-un"]).stdout == b"ubuntu\n"
    assert machine.docker().ping()
    assert machine.publish_address == instance.private_address
    shown = machine.run(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout.decode()
    assert shown.split()[:2] == str(instance.details["host_key"]).split()[:2]
    assert machine.run(["sudo", "-n", "id", "-un"]).stdout == b"root\n"

    # Only the ports of the security group let anybody in.
    port = machine.free_port()
    assert port == REPLICA_PORT
    serve(aws_with_hosts, instance, port)
    assert reachable(instance.address, 22)
    assert not reachable(instance.address, port)
    with pytest.raises(HostNotReadyError, match="something listens on port 20000 already"):
        machine.free_port()

    backend.terminate(instance)
    assert not reachable(instance.address, 22)
    assert aws_with_hosts.leftovers() == {}
    assert aws_with_hosts.order("logs") == []


def test_another_host_key_is_refused_with_both_fingerprints(backend: AwsBackend, told: list[str]) -> None:
    instance = backend.provision(backend.offers(NEEDS), STAMP, NEEDS, told.append)
    other = generate_key_pair("").public.strip()
    forged = instance.model_copy(update={"details": {**instance.details, "host_key": other}})
    with pytest.raises(HostKeyError, match=r"SHA256:.*SHA256:"):
        backend.machine(forged).run(["true"])
    backend.terminate(instance)


def test_a_gateway_reaches_the_replica_that_nobody_else_does(
    aws_with_hosts: Account, backend: AwsBackend, told: list[str]
) -> None:
    gateways = AwsGateways(backend)
    gateway = gateways.create("front", GatewayConfiguration(backend="aws"), told.append).instance
    replica = backend.provision(backend.offers(NEEDS), STAMP, NEEDS, told.append)
    serve(aws_with_hosts, replica, REPLICA_PORT)
    serve(aws_with_hosts, gateway, 80)
    serve(aws_with_hosts, gateway, 8080)
    assert gateway.network == replica.network
    machine = backend.machine(gateway)
    assert machine.docker().ping()
    place = f"/dev/tcp/{replica.private_address}"
    assert machine.run(["bash", "-c", f"exec 3<>{place}/{REPLICA_PORT}"], timeout=10).exit_code == 0
    assert machine.run(["bash", "-c", f"exec 3<>{place}/22"], timeout=10).exit_code == 0
    assert reachable(gateway.address, 80)
    assert not reachable(gateway.address, 8080)
    assert not reachable(replica.address, REPLICA_PORT)
    gateways.open_ports("front", [8080])
    assert reachable(gateway.address, 8080)
    backend.terminate(replica)
    gateways.delete("front")
    assert aws_with_hosts.leftovers() == {}


def test_a_container_with_a_gpu_is_reached_from_the_gateway(
    aws_with_hosts: Account, backend: AwsBackend, told: list[str], tmp_path: Path
) -> None:
    aws_with_hosts.order("settings", images={"replica": {"app": ["app:latest"]}})
    configuration = SERVICE.model_copy(update={"image": "app:latest", "port": ServicePort(port=8000)})
    gateways = AwsGateways(backend)
    gateway = gateways.create("front", GatewayConfiguration(backend="aws"), told.append).instance
    instance = backend.provision(
        backend.offers(requirements_of(configuration)), STAMP, requirements_of(configuration), told.append
    )
    machine = backend.machine(instance)
    launch = Launch(
        stamp=STAMP,
        spec=spec_of(configuration, tmp_path),
        gpu_devices=instance.gpu_devices,
    )
    replica = DockerRuntime().launch(machine, launch, told.append)
    assert (replica.address, replica.port) == (instance.private_address, REPLICA_PORT)
    (container,) = machine.docker().containers.list()
    assert container.attrs["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["0"]
    asking = ["busybox", "wget", "-qO-", f"http://{replica.address}:{replica.port}/"]

    def answer() -> bytes:
        return backend.machine(gateway).run(asking).stdout

    assert wait_until(answer, 30, "the replica answers the gateway")
    assert not reachable(replica.address, replica.port)
    backend.terminate(instance)
    gateways.delete("front")
    assert aws_with_hosts.leftovers() == {}


def test_a_lost_answer_leads_to_the_machine_that_was_made(
    aws_with_hosts: Account, backend: AwsBackend, told: list[str]
) -> None:
    aws_with_hosts.fault("RunInstances", kind="lose-answer", times=1)
    instance = backend.provision(backend.offers(NEEDS), STAMP, NEEDS, told.append)
    assert backend.machine(instance).docker().ping()
    assert aws_with_hosts.requests()["RunInstances"] == 1
    backend.terminate(instance)
    assert aws_with_hosts.leftovers() == {}


def test_a_machine_that_never_boots_is_given_back_and_reported(
    aws_with_hosts: Account, home: Path, told: list[str]
) -> None:
    backend = aws_with_hosts.backend(home, boot_timeout=4)
    aws_with_hosts.fault("RunInstances", kind="never-boot", times=1)
    with pytest.raises(ProvisioningError, match=r"i-\w+ \(g5.xlarge\) did not answer within 4 s"):
        backend.provision(backend.offers(NEEDS), STAMP, NEEDS, told.append)
    assert any("is given back" in line for line in told)
    assert any("console:" in line for line in told)
    assert aws_with_hosts.leftovers() == {}


def test_a_machine_that_was_interrupted_while_it_booted_is_asked_for_elsewhere(
    aws_with_hosts: Account, backend: AwsBackend, told: list[str]
) -> None:
    aws_with_hosts.fault("RunInstances", kind="never-boot", times=1)

    def interrupt(line: str) -> None:
        told.append(line)
        if "is starting" in line and len(told) < 5:
            identifier = line.split()[2]
            aws_with_hosts.order("interrupt", instance=identifier)

    instance = backend.provision(backend.offers(NEEDS), STAMP, NEEDS, interrupt)
    assert any("SpotInstanceTermination" in line for line in told)
    assert sum("asking for" in line for line in told) == 2
    backend.terminate(instance)


def test_ten_machines_take_less_than_twice_as_long_as_one(
    aws_with_hosts: Account, backend: AwsBackend, told: list[str]
) -> None:
    # On this machine a host boots in no time but takes a core for it; EC2's boot elsewhere, and slowly.
    aws_with_hosts.order("settings", boot_seconds=20)
    offers = backend.offers(NEEDS)

    def provision(number: int) -> float:
        started = time.monotonic()
        backend.provision(offers, STAMP.model_copy(update={"replica": number}), NEEDS, told.append)
        return time.monotonic() - started

    alone = provision(0)
    backend.terminate(backend.instances()[0])
    started = time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(provision, range(10)))
    together = time.monotonic() - started
    assert len(backend.instances()) == 10
    assert {backend.stamp(instance) for instance in backend.instances()} == {
        STAMP.model_copy(update={"replica": number}) for number in range(10)
    }
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(backend.terminate, backend.instances()))
    assert aws_with_hosts.leftovers() == {}
    print(f"one {alone:.1f} s, ten {together:.1f} s")
    assert together < 2 * alone
