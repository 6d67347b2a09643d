"""Services and gateways on EC2, from an empty account and back to it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from prefect_dstack import create_gateway, delete_gateway, deploy_service, reconcile_services, stop_service
from prefect_dstack.backends.aws import boot
from prefect_dstack.blocks import DstackGateway, DstackService
from prefect_dstack.errors import NotFoundError, PrefectDstackError
from prefect_dstack.hosts.pool import close_connections
from prefect_dstack.services.overview import overview
from prefect_dstack.store import documents
from prefect_dstack.store.records import find_record, load_record
from tests.command_line import CommandLine
from tests.flows.killing import (
    FIRST_TASKS,
    deploy_and_die_at_each_boundary,
    deploy_and_die_when,
)
from tests.flows.lab import Requests, answer
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.resident.test_controller import controller
from tests.testbed.ec2.account import Account
from tests.testbed.ec2.fixtures import REGIONS, _aws_with_hosts, aws_with_hosts
from tests.testbed.ec2.server import KEY_ID

__all__ = ["_aws_with_hosts", "aws_with_hosts", "controller"]

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

FRONT = {"type": "gateway", "name": "front", "backend": "aws", "region": "us-east-1"}


def use(account: Account, key_id: str = KEY_ID, **settings: Any) -> None:
    """Save the blocks by which Prefect knows the account."""
    from prefect_aws import AwsCredentials

    from prefect_dstack.aws_blocks import DstackAwsBackend

    credentials = AwsCredentials(aws_access_key_id=key_id, aws_secret_access_key="secret")
    credentials.save("tests", overwrite=True)
    values = {
        "regions": ["us-east-1"],
        "endpoint_url": account.url,
        "ssh_from": [account.network],
        "disk_gb": 8,
        "boot_timeout": 120,
        **settings,
    }
    DstackAwsBackend(credentials=credentials, settings=values).save("default", overwrite=True)


@pytest.fixture
def account(
    aws_with_hosts: Account, prefect_server: PrefectServer, home: Home, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Account]:
    """The account, known to Prefect; what is left in it at the end fails the test."""
    from prefect_dstack.aws_blocks import DstackAwsBackend

    # A machine of the testbed boots in seconds, not in minutes.
    monkeypatch.setattr(boot, "POLL", 0.2)
    aws_with_hosts.order("settings", images={"replica": {"app": []}, "gateway": {"haproxy": []}})
    use(aws_with_hosts)
    yield aws_with_hosts
    for kind in (DstackService, DstackGateway, DstackAwsBackend):
        for name in documents.names(kind):
            documents.delete(kind, name)
    close_connections()
    assert aws_with_hosts.leftovers(*REGIONS) == {}


def service(name: str, replicas: int = 1, **keys: Any) -> dict[str, Any]:
    """A service of the testbed's application on EC2."""
    return {
        "type": "service",
        "name": name,
        "image": "testbed/app:1",
        "port": 8000,
        "replicas": replicas,
        "auth": False,
        "backends": ["aws"],
        "resources": {"gpu": "24GB"},
        "probes": [{"type": "http", "url": "/health", "interval": "1s"}],
        **keys,
    }


def machines(account: Account, role: str = "replica") -> list[dict[str, Any]]:
    """The machines of the account that live."""
    by = [
        {"Name": "tag:prefect-dstack:role", "Values": [role]},
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
    ]
    listed = account.client("ec2").describe_instances(Filters=by)["Reservations"]
    return [machine for reservation in listed for machine in reservation["Instances"]]


@pytest.fixture
def told(prefect_server: PrefectServer) -> Callable[[str], list[str]]:
    """Reads what the runs of a task wrote to the Prefect log."""

    def read(task: str) -> list[str]:
        runs = prefect_server.ask("/task_runs/filter", task_runs={"name": {"any_": [task]}})
        ids = [run["id"] for run in runs]
        entries = prefect_server.ask(
            "/logs/filter", logs={"task_run_id": {"any_": ids}}, sort="TIMESTAMP_ASC"
        )
        lines = [entry["message"] for entry in entries]
        return lines if any(line.startswith("Finished in state") for line in lines) else []

    # They are sent in batches.
    return lambda task: wait_until(lambda: read(task), 30, f"the log of {task} is complete")


def test_from_an_empty_account_to_an_answer_and_back(account: Account, name: str) -> None:
    create_gateway(FRONT)
    endpoint = deploy_service(service(name, 2, gateway="front"))
    (address,) = account.client("ec2").describe_addresses()["Addresses"]
    assert endpoint.url == f"http://{address['PublicIp']}"
    assert [machine["InstanceType"] for machine in machines(account)] == ["g6.xlarge"] * 2
    with Requests(address["PublicIp"]) as requests:
        requests.wait_for_more(40)
    assert not requests.failures, requests.failures[:9]
    assert set(requests.replicas) == {f"{name}-1-0", f"{name}-1-1"}
    assert reconcile_services() == []
    stop_service(name)
    assert machines(account) == []
    delete_gateway("front")


def test_a_gateway_says_which_records_to_create_and_goes_when_nobody_knows_it_any_more(
    account: Account, cli: CommandLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "front.dstack.yml").write_text(json.dumps({**FRONT, "domain": "example.com"}))
    created = cli.ok("apply", "-f", "front.dstack.yml", "-y")
    (address,) = account.client("ec2").describe_addresses()["Addresses"]
    for record in ("example.com", "*.example.com"):
        assert f"create this DNS record: {record}. 60 IN A {address['PublicIp']}" in created.out

    documents.delete(DstackGateway, "front")
    assert reconcile_services() == []
    assert "prefect-dstack gateway delete front removes it" in caplog.text
    delete_gateway("front")
    with pytest.raises(NotFoundError, match="front: there is no such gateway"):
        delete_gateway("front")


def test_others_take_the_place_of_spot_machines_before_they_are_taken_away(
    account: Account, home: Home, name: str, prefect_server: PrefectServer, controller: None
) -> None:
    create_gateway(FRONT)
    endpoint = deploy_service(service(name, 2, gateway="front", spot_policy="spot"))
    address = urlsplit(endpoint.url).hostname or ""
    first = {machine["InstanceId"] for machine in machines(account)}

    with Requests(address) as requests:
        requests.wait_for_more()
        for instance in first:
            account.order("announce", instance=instance)
        wait_until(lambda: set(requests.replicas) >= {f"{name}-1-2", f"{name}-1-3"}, 120, "others serve")
        wait_until(
            lambda: not first & {it["InstanceId"] for it in machines(account)}, 60, "the first are gone"
        )
    assert not requests.failures, requests.failures[:9]
    wait_until(lambda: load_record(name).wanted_numbers == (2, 3), 30, "the others are recorded")
    assert load_record(name).active == 1
    runs = prefect_server.ask("/flow_runs/filter", flows={"name": {"any_": ["substitute-replicas"]}})
    assert [run["name"] for run in runs] == [
        f"substitute replicas of {name}: the provider takes back their machines"
    ]
    assert reconcile_services() == []
    stop_service(name)
    delete_gateway("front")


def test_the_gateway_of_this_machine_in_front_of_a_spot_machine_that_is_taken_away(
    account: Account, home: Home, name: str, told: Callable[[str], list[str]]
) -> None:
    use(account, regions=list(REGIONS))
    account.fault("RunInstances", kind="lose-answer", times=1)
    deploy_service(service(name, spot_policy="spot", regions=["us-east-1"]))
    (machine,) = machines(account)
    assert machine["InstanceLifecycle"] == "spot"
    lines = told(f"provision-instance {name}-1-0")
    assert any("RunInstances: no answer" in line for line in lines)
    assert any(f"{machine['InstanceId']} was made although its answer was lost" in line for line in lines)
    assert answer("127.0.0.1", home.port)

    # A region that cannot be asked costs neither requests nor machines.
    account.fault(
        "DescribeInstances", code="UnauthorizedOperation", status=403, where={"region": "eu-west-1"}
    )
    (seen,) = overview()
    assert (seen.state, seen.serving) == ("serving", 1)
    assert any(problem.startswith("aws eu-west-1 cannot be asked: aws: Desc") for problem in seen.problems)
    account.order("interrupt", instance=machine["InstanceId"])
    wait_until(lambda: not machines(account), 30, "the machine is gone")
    with pytest.raises(PrefectDstackError, match=f"{name}-1-0 may run where nobody can look") as caught:
        reconcile_services()
    assert "\n" not in str(caught.value)
    assert machines(account) == []
    account.lift_faults()

    assert f"{name}: start {name}-1-0 again" in reconcile_services()
    (other,) = machines(account)
    assert other["InstanceId"] != machine["InstanceId"]
    assert wait_until(lambda: answer("127.0.0.1", home.port), 30, "it answers again")

    # Whatever the record says: what carries our tags and has no owner goes.
    documents.delete(DstackService, name)
    assert f"remove {name}-1-0 from {name}-1-0: no record owns it" in reconcile_services()
    assert machines(account) == []


def test_every_refusal_is_in_the_log_of_the_task(
    account: Account, name: str, told: Callable[[str], list[str]]
) -> None:
    zones = ["us-east-1a", "us-east-1b", "us-east-1c"]
    spot, demand = {"market": "spot"}, {"market": "on-demand"}
    account.fault("RunInstances", code="RequestLimitExceeded", status=503, times=1)
    account.fault("RunInstances", code="SpotMaxPriceTooLow", where={**spot, "zone": zones[0]})
    account.fault("RunInstances", code="InsufficientInstanceCapacity", status=500, where=spot)
    account.fault(
        "RunInstances", code="InsufficientInstanceCapacity", status=500, where={**demand, "zone": zones[0]}
    )
    deploy_service(service(name, spot_policy="auto", instance_types=["g6.xlarge"], availability_zones=zones))
    lines = [line for line in told(f"provision-instance {name}-1-0") if line.startswith("aws: ")]
    refused = [line for line in lines if "injected by the testbed" in line]
    assert "RunInstances: RequestLimitExceeded, again in" in lines[1]
    assert [line.partition(": inj")[0] for line in refused] == [
        "aws: g6.xlarge spot in us-east-1a: SpotMaxPriceTooLow",
        "aws: g6.xlarge spot in us-east-1b: InsufficientInstanceCapacity",
        "aws: g6.xlarge spot in us-east-1c: InsufficientInstanceCapacity",
        "aws: g6.xlarge on-demand in us-east-1a: InsufficientInstanceCapacity",
    ]
    (machine,) = machines(account)
    assert machine["Placement"]["AvailabilityZone"] == "us-east-1b"
    stop_service(name)


def test_a_machine_that_never_boots_ends_the_deployment_and_leaves_nothing(
    account: Account, name: str, told: Callable[[str], list[str]]
) -> None:
    use(account, boot_timeout=3)
    account.fault("RunInstances", kind="never-boot")
    with pytest.raises(PrefectDstackError, match=r"did not answer within 3 s.*nothing of it is left$"):
        deploy_service(service(name))
    assert account.requests()["RunInstances"] == 1
    assert any("is given back" in line for line in told(f"provision-instance {name}-1-0"))


@pytest.mark.parametrize(
    ("settings", "keys", "fault", "message", "exit_code"),
    [
        ({"key_id": "AKIAWRONG"}, {}, "", "InvalidClientTokenId: .*check the AWS credentials", 1),
        ({}, {}, "RunInstances", "RunInstances of g6.xlarge .*UnauthorizedOperation: .*policy that suff", 1),
        ({}, {}, "DescribeInstanceTypes", "UnauthorizedOperation: .*policy that suffices", 1),
        ({"regions": ["eu-wets-1"]}, {}, "", "AWS has no region 'eu-wets-1'; did you mean 'eu-west-1'", 2),
        (
            {},
            {"resources": {"gpu": "H100:99"}},
            "",
            "no machine has what it asks for: aws: us-east-1: none of",
            2,
        ),
        ({}, {"max_price": 0.01}, "", r"the cheapest of \d+ matching .* costs .* more than the max_price", 2),
    ],
    ids=["credentials", "launching", "looking", "region", "resources", "price"],
)
def test_what_cannot_be_had_is_told_in_a_line_and_nothing_is_created(
    account: Account,
    name: str,
    settings: dict[str, Any],
    keys: dict[str, Any],
    fault: str,
    message: str,
    exit_code: int,
) -> None:
    use(account, **settings)
    if fault:
        account.fault(fault, code="UnauthorizedOperation", status=403)
    with pytest.raises(PrefectDstackError, match=message) as caught:
        deploy_service(service(name, **keys))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == exit_code
    assert account.requests().get("RunInstances", 0) == (fault == "RunInstances")
    record = find_record(name)
    assert record is None or record.deploying is None
    assert account.leftovers(*REGIONS) == {}


@pytest.mark.timeout(900)
def test_what_a_deployment_killed_at_any_task_boundary_leaves_is_gone_after_one_reconcile(
    account: Account, name: str, tmp_path: Path
) -> None:
    boundaries = []
    for boundary in deploy_and_die_at_each_boundary(service(name), tmp_path):
        boundaries.append(boundary)
        reconcile_services()
        assert account.leftovers(*REGIONS) == {}, f"killed at {boundary}"
        assert reconcile_services() == [], f"killed at {boundary}"
        record = find_record(name)
        assert record is not None
        assert (record.active, record.deploying) == (None, None)
    assert set(boundaries) == {
        f"{task} {state}" for task in FIRST_TASKS for state in ("Running", "Completed")
    }
    assert len(machines(account)) == 1
    stop_service(name)


def test_what_a_deployment_killed_while_its_machine_boots_leaves_is_gone_after_one_reconcile(
    account: Account, name: str
) -> None:
    deploy_and_die_when(service(name), lambda: machines(account))
    assert len(machines(account)) == 1
    reconcile_services()
    assert account.leftovers(*REGIONS) == {}
    assert reconcile_services() == []


def test_a_stop_that_aws_refuses_is_told_until_it_is_done(account: Account, name: str) -> None:
    deploy_service(service(name))
    account.fault("TerminateInstances", code="UnauthorizedOperation", status=403)
    with pytest.raises(PrefectDstackError, match="TerminateInstances"):
        stop_service(name)
    (seen,) = overview()
    assert seen.state == "unfinished"
    assert f"{name}-1-0 is left" in seen.problems
    account.lift_faults()
    stop_service(name)
    (seen,) = overview()
    assert (seen.state, seen.problems) == ("stopped", [])


@pytest.mark.timeout(900)
def test_ten_replicas_take_less_than_twice_as_long_as_one(account: Account, name: str) -> None:
    # On this machine a host boots in no time but takes a core for it; EC2's boot elsewhere, and slowly.
    account.order("settings", boot_seconds=30)
    seconds = {}
    for replicas in (1, 10):
        began = time.monotonic()
        endpoint = deploy_service(service(name, replicas))
        seconds[replicas] = time.monotonic() - began
        assert len(endpoint.replicas) == len(machines(account)) == replicas
        stop_service(name)
        assert machines(account) == []
    print(f"one {seconds[1]:.1f} s, ten {seconds[10]:.1f} s")
    assert seconds[10] < 2 * seconds[1]
