"""Fleets of SSH hosts: checked, and kept as blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger

from prefect_dstack.backends.fleet import Fleet, fleet_of
from prefect_dstack.backends.inspection import HostReport, with_internal_addresses
from prefect_dstack.blocks import DstackSshFleet
from prefect_dstack.configurations import FleetConfiguration, load_configuration
from prefect_dstack.domain.fleet_support import check_fleet_support
from prefect_dstack.errors import (
    ConfigurationError,
    ConflictError,
    HostNotReadyError,
    HostUnreachableError,
    NotFoundError,
)
from prefect_dstack.flows.served import served_flow
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.store import documents
from prefect_dstack.store.secrets import lookup
from prefect_dstack.store.sources import resolve_infrastructure
from prefect_dstack.tasks.hosts import check_hosts

__all__ = ["apply_fleet", "delete_fleet", "known_fleets", "load_fleet", "unusable_fleets"]


def load_fleet(
    configuration: str | Path | dict[str, Any] | FleetConfiguration, name: str | None = None
) -> FleetConfiguration:
    """Load a fleet, and refuse what would be ignored.

    Args:
        configuration: The path of a `*.dstack.yml` of `type: fleet`, YAML text, a mapping or a model.
        name: The name of the fleet; default: the configuration's.

    Returns:
        The fleet's configuration; it has a name.

    Raises:
        ConfigurationError: If it cannot be accepted.
    """
    loaded = load_configuration(configuration, name=name)
    if not isinstance(loaded, FleetConfiguration):
        raise ConfigurationError(
            f"is a {loaded.type}, and this takes a fleet", source=loaded.source_name, key="type"
        )
    check_fleet_support(loaded)
    return loaded


@served_flow(name="apply-fleet")
def apply_fleet(
    configuration: str | Path | dict[str, Any] | FleetConfiguration, name: str | None = None
) -> list[HostReport]:
    """Check the hosts of a fleet, and keep it so that services can be placed on them.

    Args:
        configuration: The path of a `*.dstack.yml` of `type: fleet`, YAML text, a mapping or a model.
        name: The name of the fleet; default: the configuration's.

    Returns:
        What was found, host by host.

    Raises:
        ConfigurationError: If the configuration cannot be accepted.
        HostNotReadyError: If not one host can be used; then nothing is kept.
        ConflictError: If replicas run on a host that the fleet would lose.
    """
    loaded = load_fleet(configuration, name)
    fleet = fleet_of(loaded, lookup)
    reports = check_hosts(fleet)
    if not any(report.usable for report in reports):
        refusals = "; ".join(report.refusal for report in reports)
        raise HostNotReadyError(f"{fleet.name}: no host can be used: {refusals}")
    _refuse_to_drop_hosts_in_use(fleet, resolve_infrastructure())
    placed = with_internal_addresses(fleet, reports)
    block = DstackSshFleet(
        configuration=loaded.model_dump(mode="json", exclude_unset=True) | {"type": "fleet"},
        directory=str(loaded.directory),
        internal_addresses={host.name: host.internal_ip for host in placed.hosts if host.internal_ip},
    )
    documents.save(block, fleet.name)
    return reports


def _refuse_to_drop_hosts_in_use(fleet: Fleet, infrastructure: Infrastructure) -> None:
    """Refuse while a replica is on a host that the fleet had and has no more: nobody would find it again."""
    before = known_fleets(infrastructure).get(fleet.name)
    kept = {host.name for host in fleet.hosts}
    dropped = {host.name for host in before.hosts} - kept if before is not None else set()
    if not dropped:
        return
    there = [one for one in infrastructure.instances(None, ["docker"]) if one.name in dropped]
    observation = infrastructure.observe(None, ["docker"], there)
    for found in observation.found:
        raise ConflictError(
            f"{fleet.name}: {found.replica.name} runs on {found.instance.name}, which the file has no more: "
            f"stop {found.replica.stamp.service} first, and deploy it again without that host"
        )
    for host, reason in observation.unreachable.items():
        get_run_logger().warning("%s: forgotten, with what may run there: %s", host, reason)


@served_flow(name="delete-fleet", flow_run_name="delete fleet {name}")
def delete_fleet(name: str, force: bool = False) -> None:
    """Forget a fleet; its hosts are left as they are.

    Args:
        name: The fleet.
        force: Forget hosts that cannot be reached too, with what may run there.

    Raises:
        NotFoundError: If there is no such fleet.
        ConflictError: If replicas run on its hosts.
        HostUnreachableError: If a host does not say what runs on it.
    """
    known = documents.names(DstackSshFleet)
    if name not in known:
        raise NotFoundError(f"{name}: there is no such fleet; there are: {', '.join(known) or 'none'}")
    infrastructure = resolve_infrastructure()
    fleet = known_fleets(infrastructure).get(name)
    # A block that cannot be used has no hosts that anybody could have used.
    hosts = set() if fleet is None else {host.name for host in fleet.hosts}
    instances = [one for one in infrastructure.instances(None, ["docker"]) if one.name in hosts]
    observation = infrastructure.observe(None, ["docker"], instances)
    services = sorted({found.replica.stamp.service for found in observation.found})
    if services:
        raise ConflictError(f"{name}: {', '.join(services)} run on its hosts; stop them first")
    for host, reason in observation.unreachable.items():
        if not force:
            raise HostUnreachableError(
                f"{name}: what runs on {host} is not known: {reason}; if it is gone for good: "
                f"prefect-dstack fleet delete {name} --force"
            )
        get_run_logger().warning("%s: forgotten, with what may run there: %s", host, reason)
    documents.delete(DstackSshFleet, name)


def known_fleets(infrastructure: Infrastructure) -> dict[str, Fleet]:
    """Return the fleets that can be used, by name.

    Args:
        infrastructure: Where they are.
    """
    return {
        fleet.name: fleet
        for backend in infrastructure.backends.values()
        for fleet in getattr(backend, "fleets", ())
    }


def unusable_fleets(infrastructure: Infrastructure) -> dict[str, str]:
    """Return why fleets whose blocks are there cannot be used, by name.

    Args:
        infrastructure: Where they are.
    """
    return {
        name: problem
        for backend in infrastructure.backends.values()
        for name, problem in getattr(backend, "unreadable", {}).items()
    }
