"""Replicas and nodes that connect to each other, on hosts of one network and on EC2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefect_dstack import (
    create_gateway,
    delete_gateway,
    deploy_service,
    reconcile_services,
    run_task,
    scale_service,
    stop_service,
)
from prefect_dstack.errors import NoOfferError
from prefect_dstack.flows.fleets import apply_fleet
from prefect_dstack.services.overview import overview
from tests.controller import model_gateway
from tests.flows.asking import Asking
from tests.flows.conftest import get
from tests.flows.lab import GATEWAY, Lab
from tests.flows.test_aws_services import FRONT, _aws_with_hosts, account, aws_with_hosts, machines
from tests.flows.test_tasks import TALK
from tests.testbed.ec2.account import Account

__all__ = ["_aws_with_hosts", "account", "aws_with_hosts"]

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

PROGRAM = Path(model_gateway.__file__)


def service(name: str, workers: int = 2, **keys: Any) -> dict[str, Any]:
    """A router and its workers, in containers."""
    run = "exec python3 /model_gateway.py"
    return {
        "type": "service",
        "name": name,
        "image": "testbed/app:1",
        "port": 8000,
        "auth": False,
        "files": [f"{PROGRAM}:/model_gateway.py"],
        "env": {"LISTEN": "0.0.0.0"},
        "probes": [{"type": "http", "url": "/health", "interval": "1s"}],
        "groups": [
            {"name": "router", "replicas": 1, "commands": [f"{run} router"], "router": {"type": "smg"}},
            {"name": "worker", "replicas": workers, "commands": [f"{run} worker"]},
        ],
        **keys,
    }


def addresses(name: str) -> dict[int, str]:
    """The machines of the replicas of a service, by their numbers."""
    (found,) = [one for one in overview() if one.name == name]
    return {int(replica.name.rpartition("-")[2]): replica.instance for replica in found.replicas}


def test_a_router_in_a_container_reaches_workers_on_other_hosts(lab: Lab, name: str) -> None:
    apply_fleet(lab.fleet())
    create_gateway(lab.gateway())
    endpoint = deploy_service(service(name))
    assert set(addresses(name)) == {0, 1, 3}
    assert len(set(addresses(name).values())) == 3
    assert get(endpoint.url) == {"role": "worker", "revision": "1"}

    with Asking(endpoint.url) as asking:
        scale_service(name, 1, group="worker")
        deploy_service(service(name), force=True)
    assert asking.failures == []
    assert set(asking.answers) == {"1", "2"}
    assert reconcile_services() == []
    stop_service(name)
    delete_gateway(GATEWAY)


def test_hosts_that_are_on_no_network_of_their_own_are_refused_before_anything_is_made(
    lab: Lab, name: str
) -> None:
    apply_fleet(lab.fleet(network=False))
    with pytest.raises(NoOfferError, match=f"{name}: connect to each other, .* whose hosts have a 'network'"):
        deploy_service(service(name))


def test_a_router_on_ec2_and_its_workers_have_their_machines_to_themselves(
    account: Account, name: str
) -> None:
    create_gateway(FRONT)
    needs = {"backends": ["aws"], "resources": {"cpu": 2, "memory": "2GB.."}}
    endpoint = deploy_service(service(name, 1, gateway="front", **needs))
    assert get(endpoint.url) == {"role": "worker", "revision": "1"}
    assert len(machines(account)) == 2
    stop_service(name)
    delete_gateway("front")


def test_two_nodes_on_ec2_talk(account: Account, name: str, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    result = run_task(
        {
            "type": "task",
            "name": name,
            "image": "testbed/app:1",
            "nodes": 2,
            "files": [f"{tmp_path}/talk.py:/talk.py"],
            "commands": ["python3 /talk.py > heard"],
            "env": {"TALK_PORT": "7777"},
            "backends": ["aws"],
            "resources": {"cpu": 2, "memory": "2GB.."},
        },
        artifacts={"heard": str(tmp_path / "heard")},
    )
    assert result.exit_code == 0
    assert (tmp_path / "heard").read_text() == "heard rank 1\n"
    assert machines(account) == []
