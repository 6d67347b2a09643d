"""Services that only one machine can change, as their gateway is there and nowhere else."""

from __future__ import annotations

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import ConflictError
from prefect_dstack.hosts.identity import MachineIdentity
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure

__all__ = ["is_elsewhere", "location_of", "refuse_elsewhere", "refuse_gateway_elsewhere"]


def is_elsewhere(record: ServiceRecord, here: MachineIdentity) -> bool:
    """Return whether a service can only be changed on another machine.

    Args:
        record: The record of the service.
        here: This machine.
    """
    return here.differs_from(record.location)


def refuse_elsewhere(
    record: ServiceRecord, here: MachineIdentity, verb: str, *, movable: bool = False
) -> None:
    """Refuse to change a service that can only be changed on another machine.

    Args:
        record: The record of the service.
        here: This machine.
        verb: What was asked for, for the message: `stop`.
        movable: Whether it could be moved here instead.

    Raises:
        ConflictError: If it is on another machine; names that machine and the ways there.
    """
    if not here.differs_from(record.location):
        return
    move = f", or move it here with: prefect-dstack {verb} --move" if movable else ""
    raise ConflictError(
        f"{record.name}: runs on {record.location}, and this is {here}: {verb} it there, or on a worker of "
        f"that machine{move}; an SSH fleet with a gateway of its own can be reached from everywhere"
    )


def refuse_gateway_elsewhere(gateway: ManagedGateway, here: MachineIdentity, verb: str) -> None:
    """Refuse to change a gateway that only programs on another machine reach.

    Args:
        gateway: The gateway.
        here: This machine.
        verb: What was asked for, for the message: `delete`.

    Raises:
        ConflictError: If it is on another machine; names that machine.
    """
    if here.differs_from(gateway.location):
        raise ConflictError(
            f"gateway '{gateway.name}': runs on {gateway.location}, and this is {here}: {verb} it there, or "
            "on a worker of that machine"
        )


def location_of(infrastructure: Infrastructure, gateway: ManagedGateway) -> MachineIdentity | None:
    """Return the only machine on which a service behind a gateway can be changed; None: any.

    Args:
        infrastructure: Says which machine this is.
        gateway: The gateway.
    """
    return infrastructure.here if gateway.bound_to_machine else None
