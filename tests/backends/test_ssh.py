"""The ssh backend on real hosts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefect_dstack.backends.claims import claims_on
from prefect_dstack.backends.fleet import Fleet, FleetHost
from prefect_dstack.backends.inspection import check_fleet, with_internal_addresses
from prefect_dstack.backends.ssh import SshBackend
from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.placement import place
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements, requirements_of
from prefect_dstack.errors import CapacityError, NoOfferError, ProvisioningError
from prefect_dstack.hosts.pool import close_connections
from tests.testbed.host import Host
from tests.testbed.images import load_image
from tests.testbed.testbed import Testbed

pytestmark = pytest.mark.testbed

NETWORK = "10.78.3.0/24"
# The hosts have no GPUs: this is what the driver's tool says of two.
NVIDIA_SMI = """#!/bin/sh
echo "GPU-aaaa, NVIDIA A100-SXM4-80GB, 81920, 8.0"
echo "GPU-bbbb, NVIDIA A100-SXM4-80GB, 81920, 8.0"
"""


@pytest.fixture(scope="module")
def hosts(testbed: Testbed) -> Iterator[list[Host]]:
    hosts = testbed.hosts("fleet-1", "fleet-2", internal_network=NETWORK)
    hosts[0].write_file("/usr/local/bin/nvidia-smi", NVIDIA_SMI, mode=0o755)
    yield hosts
    close_connections()
    testbed.remove(*hosts)


def member(host: Host, **changes: Any) -> FleetHost:
    return FleetHost.model_validate(
        {
            "hostname": host.address,
            "name": host.name,
            "user": "root",
            "identity_file": host.identity_file,
            "host_key": host.fingerprint,
            "network": NETWORK,
            **changes,
        }
    )


@pytest.fixture
def fleet(hosts: list[Host]) -> Fleet:
    return Fleet(name="lab", hosts=tuple(map(member, hosts)))


@pytest.fixture
def service(request: pytest.FixtureRequest) -> str:
    """A service of this test alone: what is set aside is remembered under its name."""
    return "s" + str(abs(hash(request.node.name)) % 10_000)


def configuration(**keys: Any) -> Requirements:
    loaded = load_configuration({"type": "service", "name": "s", "image": "x", "port": 80, **keys})
    assert isinstance(loaded, ServiceConfiguration)
    return requirements_of(loaded)


def ignore(_: str) -> None:
    pass


def test_a_fleet_is_checked_host_by_host(hosts: list[Host], fleet: Fleet, testbed: Testbed) -> None:
    gone = FleetHost(hostname=str(testbed.network[201]), name="gone", user="root")
    strange = member(hosts[1], name="strange", host_key="SHA256:" + "a" * 43)
    elsewhere = member(hosts[1], name="elsewhere", network="192.168.77.0/24")
    reports = check_fleet(Fleet(name="lab", hosts=(*fleet.hosts, gone, strange, elsewhere)))
    first, second, *broken = reports
    assert first.usable
    assert first.inventory is not None
    assert first.inventory.docker_version
    assert len(first.inventory.gpus) == 2
    assert "nvidia-container-toolkit" in first.problems[0].remedy
    assert second.problems == ()
    assert [report.internal_ip for report in reports[:2]] == [host.internal_address for host in hosts]
    assert not any(report.usable for report in broken)
    assert (
        "address and the network" in broken[0].problems[0].remedy
        or "firewall" in broken[0].problems[0].remedy
    )
    assert hosts[1].fingerprint in broken[1].problems[0].summary
    assert "192.168.77.0/24" in broken[2].problems[0].summary
    kept = with_internal_addresses(fleet, reports)
    assert [host.machine().publish_address for host in kept.hosts] == [
        host.internal_address for host in hosts
    ]


def test_replicas_are_spread_over_the_hosts(fleet: Fleet, service: str) -> None:
    backend, wanted = SshBackend([fleet]), configuration()
    placed = place(backend.offers(wanted), 4)
    with ThreadPoolExecutor(4) as pool:
        instances = list(
            pool.map(
                lambda n: backend.provision(
                    placed[n], Stamp(service=service, revision=1, replica=n), wanted, ignore
                ),
                range(4),
            )
        )
    assert sorted(instance.name for instance in instances) == ["fleet-1", "fleet-1", "fleet-2", "fleet-2"]


def test_each_gpu_goes_to_one_replica_and_no_room_says_what_is_left(fleet: Fleet, service: str) -> None:
    backend, wanted = SshBackend([fleet]), configuration(resources={"gpu": "A100:1"})
    stamps = [Stamp(service=service, revision=1, replica=n) for n in range(3)]
    placed = place(backend.offers(wanted), 2)
    with ThreadPoolExecutor(2) as pool:
        instances = list(
            pool.map(lambda n: backend.provision(placed[n], stamps[n], wanted, ignore), range(2))
        )
    try:
        assert sorted(instance.gpu_devices for instance in instances) == [("GPU-aaaa",), ("GPU-bbbb",)]
        # Asked again, also by another object, there is the same answer.
        assert SshBackend([fleet]).provision(placed[0], stamps[0], wanted, ignore) == instances[0]
        with pytest.raises(NoOfferError, match=r"gpu .*A100.*fleet-1: gpu: .* none there; fleet-2: gpu:"):
            backend.offers(wanted)
        with pytest.raises(CapacityError, match="fleet-1: there is no room left"):
            backend.provision(placed[0], stamps[2], wanted, ignore)
    finally:
        for instance in instances:
            backend.terminate(instance)
    assert len(place(backend.offers(wanted), 2)) == 2


def test_containers_count_whoever_started_them(hosts: list[Host], fleet: Fleet) -> None:
    load_image(hosts[1], "busybox")
    backend, wanted = SshBackend([fleet]), configuration(resources={"cpu": 1})
    before = {offer.instance_type: offer.slots for offer in backend.offers(wanted)}
    stamp = Stamp(service="elsewhere", revision=4, replica=0)
    labels = {**stamp.labels(), "prefect-dstack.cpus": "1", "prefect-dstack.memory-gb": "0.5"}
    with hosts[1].docker() as client:
        container = client.containers.create("testbed/busybox:1", "true", labels=labels)
        try:
            offers = backend.offers(wanted)
            after = {offer.instance_type: offer.slots for offer in offers}
            assert after["fleet-2"] == (before["fleet-2"] or 0) - 1
            assert offers[0].instance_type == "fleet-1"
            # The replica is there already, so there it stays.
            found = backend.provision(
                [o for o in offers if o.instance_type == "fleet-2"], stamp, wanted, ignore
            )
            assert found.name == "fleet-2"
        finally:
            container.remove(force=True)
    engine = backend.machine(found).docker()
    assert all(claim.stamp.service != "elsewhere" for claim in claims_on(engine, "fleet-2"))


def test_a_host_that_is_gone_is_left_out(
    fleet: Fleet, testbed: Testbed, caplog: pytest.LogCaptureFixture
) -> None:
    gone = FleetHost(hostname=str(testbed.network[202]), name="gone", user="root")
    offers = SshBackend([Fleet(name="lab", hosts=(*fleet.hosts, gone))]).offers(configuration())
    assert {offer.instance_type for offer in offers} == {"fleet-1", "fleet-2"}
    assert "gone is left out" in caplog.text
    with pytest.raises(ProvisioningError, match="no host can be used: gone"):
        SshBackend([Fleet(name="lab", hosts=(gone,))]).offers(configuration())


def test_only_the_fleets_that_are_named_are_used(fleet: Fleet) -> None:
    backend = SshBackend([fleet])
    assert backend.offers(configuration(fleets=["lab"]))
    with pytest.raises(NoOfferError, match="no hosts of the fleets other"):
        backend.offers(configuration(fleets=["other"]))


def test_keys_that_no_host_can_satisfy_are_refused_by_name(fleet: Fleet) -> None:
    backend = SshBackend([fleet])
    assert backend.offers(configuration(spot_policy="auto", max_price=0.001))
    with pytest.raises(NoOfferError, match="spot_policy: hosts of fleets are no spot instances; remove it"):
        backend.offers(configuration(spot_policy="spot"))


def test_gpus_are_chosen_by_their_compute_capability(fleet: Fleet) -> None:
    backend = SshBackend([fleet])
    (offer,) = backend.offers(configuration(resources={"gpu": {"compute_capability": "8.0"}}))
    assert (offer.instance_type, offer.fleet) == ("fleet-1", "lab")
    with pytest.raises(NoOfferError, match=r"fleet-1: gpu: 1 of compute capability 9\.0 asked, A100"):
        backend.offers(configuration(resources={"gpu": {"compute_capability": "9.0"}}))


def test_hosts_are_listed_without_being_asked(tmp_path: Path) -> None:
    fleet = Fleet(
        name="lab", hosts=(FleetHost(hostname="192.0.2.1", internal_ip="10.0.0.1", network="10.0.0.0/24"),)
    )
    backend = SshBackend([fleet])
    (instance,) = backend.instances()
    assert (instance.id, instance.address, instance.private_address) == (
        "lab/192.0.2.1",
        "192.0.2.1",
        "10.0.0.1",
    )
    assert backend.stamp(instance) is None
    backend.terminate(instance)
    assert backend.instances() == [instance]
