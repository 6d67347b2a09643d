"""From the names of gateways to where they live, and how they reach replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_dstack.configurations import (
    GatewayConfiguration,
    ServiceConfiguration,
    resolve_gateway,
)
from prefect_dstack.errors import ConfigurationError, GatewayError, NotFoundError, PrefectDstackError
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.local import LocalPlace
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.settings import settings
from prefect_dstack.tasks.inventory import inventory
from prefect_dstack.tasks.secrets import lookup

if TYPE_CHECKING:
    from prefect_dstack.backends.aws import AwsGateways
    from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = [
    "address",
    "choose",
    "gateway",
    "in_cloud",
    "initial_state",
    "is_implicit",
    "machine",
    "open_ports",
    "runs",
    "state",
    "unusable",
]

LOCAL = "local"


def is_implicit(name: str) -> bool:
    """Tell whether a gateway comes and goes by itself: the one of this machine does.

    Args:
        name: The gateway.

    Returns:
        Whether it needs no configuration.
    """
    return name == LOCAL and LOCAL not in inventory().gateways


def configuration_of(name: str) -> GatewayConfiguration:
    """Load the configuration of a gateway.

    Args:
        name: The gateway.

    Returns:
        As it was written; for the gateway of this machine, what it is without being written.

    Raises:
        NotFoundError: If there is no such gateway.
    """
    known = inventory().gateways
    if name in known:
        return known[name]
    if name == LOCAL:
        return GatewayConfiguration(name=LOCAL, port=settings().local_gateway_port)
    raise NotFoundError(f"{name}: there is no such gateway; there are: {', '.join([*known, LOCAL])}")


def choose(configuration: ServiceConfiguration, before: str | None = None) -> str:
    """Choose the gateway of a service.

    Args:
        configuration: The service.
        before: The gateway it has had, kept where the configuration leaves the choice.

    Returns:
        The name of the gateway that it names by name or address; else the default or only one; else
        that of this machine.

    Raises:
        NotFoundError: If it names one that does not exist.
    """
    wanted = resolve_gateway(configuration, lookup)
    known = sorted(inventory().gateways)
    if isinstance(wanted, str):
        name = wanted.rpartition("/")[2]
        if name in known or name == LOCAL:
            return name
        for candidate in known:
            if wanted in (configuration_of(candidate).domain, address(candidate)):
                return candidate
        # As it is written: where a secret holds the address, only the reference is shown.
        raise NotFoundError(
            f"gateway: {configuration.gateway}: there is none with this name or address; "
            f"there are: {', '.join([*known, LOCAL])}"
        )
    if before is not None and before in [*known, LOCAL]:
        return before
    defaults = [name for name in known if configuration_of(name).default]
    if len(known) > 1 and len(defaults) != 1:
        raise ConfigurationError(
            f"is missing; there are {', '.join(known)}; name one, or give one of them 'default: true'",
            source=configuration.source_name,
            key="gateway",
        )
    return (defaults or known or [LOCAL])[0]


def gateway(name: str) -> Gateway:
    """Reach a gateway.

    Args:
        name: Its name.

    Returns:
        The gateway; it may not run yet.
    """
    configuration = configuration_of(name)
    if configuration.backend == "local":
        return Gateway(LocalPlace(name))
    from prefect_dstack.gateways.host import HostPlace

    return Gateway(HostPlace(machine(name), name))


def machine(name: str) -> SshMachine:
    """Reach the host of a gateway that is not on this machine.

    Args:
        name: The gateway.

    Returns:
        Its host.

    Raises:
        GatewayError: If its machine was never created, or its backend is not configured any more.
    """
    configuration = configuration_of(name)
    there = inventory()
    if configuration.host is not None:
        from prefect_dstack.backends.fleet import host_of

        return host_of(configuration.host, configuration.directory, lookup).machine()
    instance = there.gateway_instances.get(name)
    if instance is None or there.aws is None:
        raise GatewayError(
            f"gateway '{name}': its machine is not known; apply its file again"
            if there.aws is not None
            else f"gateway '{name}': the AWS backend is not configured any more; save its block again"
        )
    return there.aws.machine(instance)


def cloud(name: str) -> AwsGateways:
    """Find what creates and deletes the machine of a gateway.

    Args:
        name: The gateway.

    Returns:
        The gateways of the account.

    Raises:
        ConfigurationError: If no AWS account is configured.
    """
    account = inventory().aws
    if account is None:
        raise ConfigurationError(
            f"gateway '{name}' needs an AWS account: save a DstackAwsBackend block named 'default'",
            key="backend",
        )
    from prefect_dstack.backends.aws import AwsGateways

    return AwsGateways(account)


def in_cloud() -> list[str]:
    """List the gateways that have a machine in the AWS account, whether they are known or not.

    Returns:
        Their names; none if no account is configured.

    Raises:
        ProvisioningError: If the account cannot be asked.
    """
    if inventory().aws is None:
        return []
    return [instance.name for instance in cloud("").instances()]


def open_ports(name: str, state: GatewayState) -> None:
    """See that a gateway's firewall lets clients reach the ports that its services are published on.

    Args:
        name: The gateway.
        state: What it routes.
    """
    if configuration_of(name).backend == "aws":
        https = [] if state.https_port is None else [state.https_port]
        cloud(name).open_ports(name, [*state.http_ports, *https])


def initial_state(name: str) -> GatewayState:
    """Say how a gateway begins.

    Args:
        name: Its name.

    Returns:
        A state without routes.
    """
    configuration = configuration_of(name)
    local = configuration.backend == "local"
    return GatewayState(
        name=name,
        bind_address="127.0.0.1" if local else "*",
        base_port=configuration.port or (settings().local_gateway_port if local else 80),
        https_port=configuration.effective_https_port,
        domain=configuration.domain,
    )


def state(name: str) -> GatewayState | None:
    """Read what a gateway routes.

    Args:
        name: Its name.

    Returns:
        Its state; None if it does not exist (yet, or any more).
    """
    try:
        return gateway(name).state()
    except NotFoundError:
        return None


def runs(name: str) -> bool:
    """Tell whether a gateway runs.

    Args:
        name: The gateway.

    Returns:
        Whether its HAProxy is there, or about to be back.

    Raises:
        GatewayError: If it cannot be found out.
        HostError: If its host cannot be reached.
    """
    try:
        return gateway(name).place.running()
    except NotFoundError:
        return False


def unusable(name: str, service: str) -> dict[str, str]:
    """Find the replicas that a gateway has in a route and cannot use.

    Args:
        name: The gateway.
        service: The service.

    Returns:
        What its checks of them say, by their names; none if the gateway does not answer.
    """
    try:
        health = gateway(name).replica_health(service)
    except PrefectDstackError:
        return {}
    return {replica: it.check for replica, it in health.items() if it.status == "DOWN"}


def address(name: str) -> str:
    """Tell where a gateway is reached from here.

    Args:
        name: Its name.

    Returns:
        A host name or an address; empty while its machine was not created yet.
    """
    configuration = configuration_of(name)
    if configuration.backend == "aws":
        instance = inventory().gateway_instances.get(name)
        return "" if instance is None else instance.address
    return configuration.host.hostname if configuration.host is not None else "127.0.0.1"
