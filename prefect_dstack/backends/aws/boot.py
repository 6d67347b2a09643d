"""From a machine that EC2 has promised to one that answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from docker import errors
from requests.exceptions import RequestException

from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.backends.aws.errors import CAPACITY
from prefect_dstack.backends.aws.instances import CONSISTENCY, describe, to_instance
from prefect_dstack.backends.aws.user_data import READY
from prefect_dstack.backends.base import Instance, Report
from prefect_dstack.errors import CapacityError, HostError, HostNotReadyError, ProvisioningError
from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = ["console", "wait_until_ready", "wait_until_running"]

POLL = 2.0
CLOUD_INIT_LOG = "/var/log/cloud-init-output.log"


def wait_until_running(
    aws: Aws, region: str, identifier: str, deadline: float, clock: Callable[[], float] = time.monotonic
) -> Instance:
    """Wait until EC2 says that a machine runs and has its addresses.

    Args:
        aws: The account.
        region: Where.
        identifier: For example `i-0abc...`.
        deadline: On `clock`.
        clock: Tells the seconds.

    Returns:
        The machine.

    Raises:
        CapacityError: If EC2 took it back for want of capacity.
        ProvisioningError: If it ended or was not running in time.
    """
    first = clock()
    state = "unknown"
    while True:
        instance = describe(aws, region, identifier)
        if instance is not None:
            state = instance["State"]["Name"]
            found = to_instance(aws, region, instance)
            if state == "running" and found.address:
                return found
            if state in ("shutting-down", "terminated", "stopping", "stopped"):
                raise _ended(region, identifier, state, instance.get("StateReason") or {})
        elif clock() - first > CONSISTENCY:
            raise ProvisioningError(f"aws: {region}: {identifier} was made, but EC2 no longer knows it")
        if clock() >= deadline:
            raise ProvisioningError(
                f"aws: {region}: {identifier} is {state}"
                + (" but has no address: check the subnet" if state == "running" else " instead of running")
            )
        aws.pause(POLL)


def _ended(region: str, identifier: str, state: str, reason: dict[str, Any]) -> ProvisioningError:
    code = str(reason.get("Code", "")).rpartition(".")[2]
    message = f"aws: {region}: {identifier} is {state}: {reason.get('Message') or code or 'no reason given'}"
    if code in CAPACITY or code == "SpotInstanceTermination":
        return CapacityError(message)
    return ProvisioningError(message)


def wait_until_ready(
    aws: Aws,
    instance: Instance,
    reach: Callable[[Instance], SshMachine],
    deadline: float,
    report: Report,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until a machine's SSH server and Docker Engine answer.

    Args:
        aws: The account.
        instance: The machine.
        reach: Makes the way to it.
        deadline: On `clock`.
        report: Told what it still lacks, when that changes.
        clock: Tells the seconds.

    Raises:
        CapacityError: If EC2 took it back meanwhile.
        ProvisioningError: If it did not answer in time.
    """
    started = clock()
    told = ""
    last: HostError
    while True:
        machine = reach(instance)
        try:
            if machine.run(["test", "-e", READY], timeout=20).exit_code == 0:
                machine.docker().ping()
                report(f"aws: {instance.id} answers after {clock() - started:.0f} s")
                return
            last = HostNotReadyError(
                f"{machine.name}: cloud-init has not finished, see {CLOUD_INIT_LOG} there"
            )
        except HostError as error:
            # Another host key is never accepted, but may be shown until cloud-init has put ours in its place.
            last = error
        except (errors.DockerException, RequestException) as error:
            last = HostNotReadyError(f"{machine.name}: its Docker Engine does not answer: {error}")
        # A login keeps the groups that it began with: one from before Docker's installation never gets in.
        machine.connection.close()
        # Raises if the machine has ended.
        wait_until_running(aws, instance.region, instance.id, deadline=clock() + POLL)
        kind = type(last).__name__
        if kind != told:
            told = kind
            report(f"aws: {instance.id}: waiting until it answers: {last}")
        if clock() >= deadline:
            raise ProvisioningError(
                f"aws: {instance.region}: {instance.id} ({instance.instance_type}) did not answer within "
                f"{aws.settings.boot_timeout:.0f} s of its start: {last}"
            ) from last
        aws.pause(POLL)


def console(aws: Aws, region: str, identifier: str, lines: int = 10) -> list[str]:
    """Read the last lines of a machine's console, to say why it did not boot.

    Args:
        aws: The account.
        region: Where.
        identifier: For example `i-0abc...`.
        lines: How many.

    Returns:
        The lines; none if there are none to be had.
    """
    try:
        output = aws.call(region, "ec2", "get_console_output", InstanceId=identifier).get("Output") or ""
    except ProvisioningError:
        return []
    return [line.rstrip() for line in output.splitlines() if line.strip()][-lines:]
