"""What a controller has seen of the services, and what it makes of that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from prefect_dstack.configurations import ServiceConfiguration, load_configuration
from prefect_dstack.domain.groups import may_be_interrupted
from prefect_dstack.domain.record import Revision, ServiceRecord, now
from prefect_dstack.domain.replacement import replica_to_replace
from prefect_dstack.gateways.look import GatewayLook
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.resident.scaling import GroupLoad, ScalingChange, scaled_groups

__all__ = ["HungReplica", "ServiceWatch"]


@dataclass(frozen=True)
class HungReplica:
    """A replica that is to be replaced.

    Attributes:
        service: The service.
        replica: The name of the replica.
        reason: Why, in one line.
    """

    service: str
    replica: str
    reason: str


class ServiceWatch:
    """The recent loads of one service.

    Args:
        record: The record of the service.
        clock: Seconds, by a clock that only goes forward.

    Attributes:
        record: The record of the service.
        may_be_interrupted: Whether replicas of it may run on machines that their provider takes back.
    """

    def __init__(self, record: ServiceRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self.record = record
        self._clock = clock
        self._revision: Revision | None = None
        self._configuration: ServiceConfiguration | None = None
        self._scaled: list[GroupLoad] = []
        self.may_be_interrupted = False
        self.update(record)

    def update(self, record: ServiceRecord) -> None:
        """Go on with a newer record.

        Args:
            record: The record.
        """
        self.record = record
        active = record.active_revision
        if active is self._revision or (
            active is not None and self._revision is not None and active == self._revision
        ):
            return
        self._revision = active
        self._configuration, self._scaled = None, []
        self.may_be_interrupted = active is not None and may_be_interrupted(active.configuration)
        if active is not None:
            loaded = load_configuration(active.configuration, name=record.name, directory=active.directory)
            if isinstance(loaded, ServiceConfiguration):
                self._configuration, self._scaled = loaded, scaled_groups(loaded, self._clock)

    @property
    def is_scaled(self) -> bool:
        """Whether the number of its replicas follows its load."""
        desired = self.record.desired
        return bool(self._scaled) and self.record.active is not None and not (desired and desired.pinned)

    @property
    def replaces_hung(self) -> bool:
        """Whether its replicas are replaced when they have stopped answering."""
        configuration = self._configuration
        return configuration is not None and configuration.restart_after is not None

    def hung(self, seen: GatewayLook) -> HungReplica | None:
        """Return the replica that is to be replaced by now; None if none is.

        Args:
            seen: What the gateway in front of it has shown, which asks the probe again and again.
        """
        configuration = self._configuration
        if configuration is None or configuration.restart_after is None:
            return None
        health = seen.health(self.record.name)
        wanted = self.record.wanted_names
        failing = {name: it for name, it in health.items() if it.status == "DOWN" and name in wanted}
        chosen = replica_to_replace(
            {name: it.since for name, it in failing.items()},
            self.record.replacements,
            float(configuration.restart_after),
            now(),
        )
        if chosen is None:
            return None
        found = failing[chosen]
        reason = f"its probe has failed for {found.since:.0f} s: {found.check or 'no answer'}"
        return HungReplica(self.record.name, chosen, reason)

    def look(self, seen: GatewayLook, gateway: ManagedGateway, infrastructure: Infrastructure) -> None:
        """Note the load of the service as the gateway counts it.

        Args:
            seen: What the gateway in front of it has shown.
            gateway: That gateway.
            infrastructure: Where its replicas are, for metrics of their own.
        """
        for load in self._scaled:
            load.look(self.record, seen, gateway, infrastructure)

    def change(self) -> ScalingChange | None:
        """Return what is to change by now, of one group at a time; None if nothing is."""
        if not self.is_scaled:
            return None
        changes = (load.change(self.record) for load in self._scaled)
        return next((change for change in changes if change is not None), None)
