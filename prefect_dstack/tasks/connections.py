"""From names and records to the machines, runtimes and gateways behind them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from prefect_dstack.backends.base import Backend, Instance
from prefect_dstack.backends.local import LocalBackend
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.errors import NotFoundError
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.runtimes.base import Runtime
from prefect_dstack.runtimes.process import ProcessRuntime
from prefect_dstack.settings import settings
from prefect_dstack.tasks.inventory import inventory

__all__ = ["backends", "machine", "runtime", "runtime_for"]


def backends() -> Mapping[str, Backend]:
    """List the backends that are configured.

    Returns:
        Backends by name; `local` is always among them.
    """
    known: dict[str, Backend] = {"local": LocalBackend(settings().home)}
    there = inventory()
    if there.fleets:
        # paramiko and the Docker SDK take their time to import, which services without hosts need not pay.
        from prefect_dstack.backends.ssh import SshBackend

        known["ssh"] = SshBackend(list(there.fleets.values()))
    if there.aws is not None:
        known["aws"] = there.aws
    return known


def machine(instance: Instance) -> Machine:
    """Reach the machine of an instance.

    Args:
        instance: The instance.

    Returns:
        Its machine.

    Raises:
        NotFoundError: If its backend is not configured any more.
        HostError: If it cannot be reached.
    """
    known = backends()
    if instance.backend not in known:
        raise NotFoundError(f"{instance.name}: its backend {instance.backend} is not configured any more")
    return known[instance.backend].machine(instance)


def runtime(name: str) -> Runtime:
    """Find a runtime.

    Args:
        name: `docker` or `process`.

    Returns:
        The runtime.
    """
    if name == "process":
        return ProcessRuntime(settings().home / "replicas")
    return _docker()


def runtime_for(configuration: ServiceConfiguration) -> Runtime:
    """Choose the runtime of a service.

    Args:
        configuration: Of the service.

    Returns:
        `docker` where an image is named, `process` otherwise.
    """
    return runtime("docker" if configuration.image else "process")


@functools.cache
def _docker() -> Runtime:
    # The Docker SDK takes a second to import, which services of processes need not pay.
    from prefect_dstack.runtimes.docker import DockerRuntime

    return DockerRuntime()
