"""Repair: what killed deployments, lost hosts and deleted records have left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dstack import (
    create_gateway,
    delete_gateway,
    deploy_service,
    reconcile_services,
    stop_service,
)
from prefect_dstack.flows.fleets import apply_fleet
from prefect_dstack.services.overview import overview
from prefect_dstack.store.records import delete_record
from tests.flows.killing import FIRST_TASKS, deploy_and_die_at_each_boundary
from tests.flows.lab import GATEWAY, Lab, answer
from tests.polling import wait_until

pytestmark = pytest.mark.testbed


@pytest.fixture
def tunnels(lab: Lab) -> Iterator[Lab]:
    """A fleet of two hosts and a gateway that reaches them through tunnels."""
    apply_fleet(lab.fleet(*lab.hosts[:2], network=False))
    create_gateway(lab.gateway(network=False))
    yield lab
    lab.heal()
    delete_gateway(GATEWAY)


@pytest.mark.timeout(600)
def test_a_deployment_killed_at_any_task_boundary_leaves_nothing_after_one_pass(
    tunnels: Lab, name: str, tmp_path: Path
) -> None:
    before = tunnels.traces()
    boundaries = []
    for boundary in deploy_and_die_at_each_boundary(tunnels.service(name, 1), tmp_path):
        boundaries.append(boundary)
        reconcile_services()
        left = tunnels.differences(before, tunnels.traces())
        assert not left, f"killed at {boundary}"
        assert reconcile_services(dry_run=True) == [], f"killed at {boundary}"
    assert set(boundaries) == {
        f"{task} {state}" for task in FIRST_TASKS for state in ("Running", "Completed")
    }
    assert answer(tunnels.edge.address)
    stop_service(name)


def test_a_lost_host_holds_up_nobody_and_its_replica_moves_and_is_no_duplicate_later(
    tunnels: Lab, name: str
) -> None:
    kept, lost = tunnels.hosts[:2]
    deploy_service(tunnels.service(name, 2))
    lost.power_off()
    began = time.monotonic()
    lines = reconcile_services()
    assert time.monotonic() - began < 60
    assert len(lines) == 1
    assert kept.check(["docker", "ps", "-q", "--filter", "label=prefect-dstack.service"]).count("\n") == 2
    (service,) = overview()
    assert service.serving == 2
    assert reconcile_services(dry_run=True) == []

    lost.start()
    (duplicate,) = [line for line in reconcile_services() if "duplicate" in line]
    assert duplicate.endswith(lost.address)
    assert lost.check(["docker", "ps", "-aq"]) == ""
    assert "prefect-dstack-tunnel" not in lost.read_file("/root/.ssh/authorized_keys")
    assert reconcile_services(dry_run=True) == []
    stop_service(name)


def test_keys_on_the_way_to_a_replica_behind_a_host_with_replicas_are_left_alone(lab: Lab, name: str) -> None:
    door, inner = lab.hosts[0], lab.hosts[1]
    apply_fleet(lab.fleet(door, network=False))
    deep = lab.fleet(inner, network=False, name="deep")
    jump = {**lab.member(door)}
    deep["ssh_config"]["hosts"] = [lab.member(inner, proxy_jump=jump)]
    apply_fleet(deep)
    create_gateway(lab.gateway(network=False))
    deploy_service(lab.service(name, 1, fleets=["deep"]))
    assert "prefect-dstack-tunnel" in door.read_file("/root/.ssh/authorized_keys")
    assert reconcile_services() == []
    inner.reboot()
    wait_until(lambda: answer(lab.edge.address), 60, "it answers after the reboot")
    stop_service(name)
    assert "prefect-dstack-tunnel" not in door.read_file("/root/.ssh/authorized_keys")
    delete_gateway(GATEWAY)


def test_a_tunnel_whose_key_was_lost_is_opened_again(tunnels: Lab, name: str) -> None:
    deploy_service(tunnels.service(name, 1))
    for host in tunnels.hosts[:2]:
        host.check(["sed", "-i", "/prefect-dstack-tunnel:/d", "/root/.ssh/authorized_keys"])
    tunnels.edge.check(["sh", "-c", "docker restart -t 1 $(docker ps -qf label=prefect-dstack.tunnel.port)"])
    wait_until(lambda: overview()[0].state == "down", 60, "the gateway notices")
    assert reconcile_services() == [f"{name}: open the tunnel of gateway {GATEWAY} to {name}-1-0 again"]
    wait_until(lambda: answer(tunnels.edge.address), 30, "it answers again")
    assert reconcile_services(dry_run=True) == []
    stop_service(name)


def test_what_no_record_owns_is_removed_even_while_a_host_is_away(tunnels: Lab, name: str) -> None:
    before = tunnels.traces()
    deploy_service(tunnels.service(name, 2))
    delete_record(name)
    tunnels.hosts[1].isolate_from(tunnels.testbed)
    reconcile_services()
    after = tunnels.traces()
    assert not tunnels.differences({"lab-1": before["lab-1"], "lab-edge": before["lab-edge"]}, after)
    tunnels.hosts[1].rejoin(tunnels.testbed)
    reconcile_services()
    assert not tunnels.differences(before, tunnels.traces())
    assert reconcile_services(dry_run=True) == []
