"""Hosts of fleets: machines that somebody gave us and that services share."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prefect_dstack.backends.base import GatewayHost, Instance, Offer, Report
from prefect_dstack.backends.capacity import HostCapacity
from prefect_dstack.backends.claims import Claim, claims_on, held_claims, hold, let_go
from prefect_dstack.backends.fleet import Fleet, FleetHost, SecretLookup, host_of
from prefect_dstack.backends.inspection import HostInventory, check_hosts, inspect
from prefect_dstack.backends.matching import misplaced
from prefect_dstack.configurations import Resources
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.errors import (
    CapacityError,
    GatewayError,
    HostError,
    NoOfferError,
    NoRoomError,
    NotFoundError,
    ProvisioningError,
)
from prefect_dstack.gateways.attachment import Attachment, is_in
from prefect_dstack.hosts.ssh_machine import SshMachine

if TYPE_CHECKING:
    from prefect_dstack.configurations import GatewayConfiguration

__all__ = ["SshBackend"]

logger = logging.getLogger(__name__)

# Replicas that this process places at the same time on one host look at it one after the other.
_locks: dict[str, threading.Lock] = {}
_lock = threading.Lock()

# What a host has changes rarely, and asking a GPU driver takes seconds.
FRESH = 60.0
_inventories: dict[FleetHost, tuple[float, HostInventory]] = {}


class SshBackend:
    """Gives shares of the hosts of fleets; implements `Backend`.

    What is taken is what the labels of the containers on the hosts say, whoever started them; what this
    process has given away since is remembered until its container is there.

    Args:
        fleets: The fleets; a host that is in two of them belongs to the first.
        unreadable: Fleets that cannot be used, and why; only those who ask for hosts need to know.
        lookup: Gives the value of a secret by its name; for the hosts of gateways.
    """

    name = "ssh"
    runtimes = frozenset({"docker"})

    def __init__(
        self,
        fleets: Sequence[Fleet],
        unreadable: Mapping[str, str] | None = None,
        lookup: SecretLookup | None = None,
    ) -> None:
        self.fleets = tuple(fleets)
        self.unreadable = dict(unreadable or {})
        self._lookup = lookup
        self._hosts: dict[str, tuple[Fleet, FleetHost]] = {}
        for fleet in self.fleets:
            for host in fleet.hosts:
                self._hosts.setdefault(host.name, (fleet, host))

    @property
    def preferred(self) -> bool:
        """Whether there are hosts at all, besides those of gateways; see `Backend.preferred`."""
        return bool(self.fleets or self.unreadable)

    def offers(self, requirements: Requirements) -> Sequence[Offer]:
        """Offer what is left of each host that has room, the emptiest first; see `Backend.offers`.

        Args:
            requirements: What a replica needs. If hosts cannot satisfy it whatever they have left, as a
                region, none is asked.

        Returns:
            One offer for each host; `slots` says how many replicas fit. Hosts that do not answer are logged
            and left out.

        Raises:
            NoOfferError: If no host will do, or has room; says what was asked, and what is left of each.
            ProvisioningError: If not one host answers.
        """
        acceptable = self._acceptable(requirements)
        reports = check_hosts([host for _, host in acceptable])
        fitting: list[tuple[float, int, int, Offer]] = []
        reasons = []
        for number, ((fleet, host), report) in enumerate(zip(acceptable, reports, strict=True)):
            refusal = report.refusal
            if refusal or report.inventory is None:
                logger.warning("%s is left out: %s", host.name, refusal)
                reasons.append(refusal)
                continue
            _inventories[host] = (time.monotonic(), report.inventory)
            capacity = HostCapacity(host.name, report.inventory, report.claims, host.blocks)
            offer, lacking = capacity.offer(requirements)
            offer = offer.model_copy(update={"fleet": fleet.name, "network": _network(host)})
            if lacking:
                reasons.append(f"{host.name}: {', '.join(map(str, lacking))}")
            else:
                fitting.append((capacity.used, len(report.claims), number, offer))
        if fitting:
            return [offer for *_, offer in sorted(fitting, key=lambda one: one[:3])]
        if not any(report.inventory for report in reports):
            raise ProvisioningError(f"no host can be used: {'; '.join(reasons)}")
        raise NoRoomError(
            f"no host has room for a replica with {_describe(requirements.resources)}: {'; '.join(reasons)}"
        )

    def provision(
        self, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements, report: Report
    ) -> Instance:
        """Set a share of the first host with room aside; see `Backend.provision`.

        Args:
            offers: Of `offers`, in the order to try.
            stamp: For whom.
            requirements: As for `offers`.
            report: Told of hosts that are passed over.

        Returns:
            The host, with the GPUs that are the replica's own.

        Raises:
            CapacityError: If none of the hosts has room any more, or answers.
        """
        passed = []
        offers = sorted(offers, key=lambda offer: not _is_held(offer.instance_type, stamp))
        for offer in offers:
            if offer.instance_type not in self._hosts:
                passed.append(f"{offer.instance_type}: not in a fleet any more")
                continue
            fleet, host = self._hosts[offer.instance_type]
            try:
                claim = _claim(host, stamp, requirements)
            except HostError as error:
                passed.append(str(error))
                report(f"{stamp.name}: {error}")
                continue
            if claim is None:
                passed.append(f"{host.name}: there is no room left")
                report(f"{stamp.name}: {host.name} has no room left")
                continue
            # Nobody else who needs a GPU fits beside one that has them all.
            gpus = len(claim.gpu_devices)
            whole = gpus > 0 and gpus == len(_inventory(host, host.machine()).gpus)
            return _instance(fleet, host, claim).model_copy(update={"exclusive": whole})
        raise CapacityError(f"{stamp.name}: no host can take it: {'; '.join(passed) or 'none was offered'}")

    def instances(self) -> Sequence[Instance]:
        """List all hosts of all fleets; see `Backend.instances`."""
        return [_instance(fleet, host) for fleet, host in self._hosts.values()]

    def stamp(self, instance: Instance) -> Stamp | None:
        """Hosts are nobody's; see `Backend.stamp`."""
        return None

    def terminate(self, instance: Instance) -> None:
        """Leave the host as it is, but forget what was set aside for a container that will not come."""
        replica = instance.details.get("replica")
        if isinstance(replica, str):
            let_go(instance.name, replica)

    def machine(self, instance: Instance) -> SshMachine:
        """Reach a host; see `Backend.machine`.

        Args:
            instance: The host.

        Returns:
            The machine, connected on first use.

        Raises:
            NotFoundError: If no fleet has it any more.
        """
        if instance.name not in self._hosts:
            raise NotFoundError(
                f"{instance.name}: is in no fleet any more: apply the fleet that had it again, "
                "or stop its services"
            )
        return self._hosts[instance.name][1].machine()

    def gateway_host(
        self, name: str, configuration: GatewayConfiguration, machine: Instance | None
    ) -> GatewayHost:
        """Return the host that a gateway's configuration names; see `HostsGateways.gateway_host`."""
        from prefect_dstack.gateways.host import HostPlace
        from prefect_dstack.gateways.host_tunnels import HostTunnels

        if configuration.host is None:
            raise GatewayError(f"gateway '{name}': its configuration names no host")
        host = host_of(configuration.host, configuration.directory, self._lookup or _no_secret)
        private = configuration.host.internal_ip
        if private is None and is_in(host.hostname, configuration.network):
            private = host.hostname
        reached = host.machine()
        return GatewayHost(
            place=HostPlace(reached, name),
            attachment=Attachment(host.hostname, private, configuration.network),
            public=True,
            port=80,
            tunnels=lambda: HostTunnels(reached, name),
            may_hold_tunnels=lambda: True,
        )

    def _acceptable(self, requirements: Requirements) -> list[tuple[Fleet, FleetHost]]:
        refused = {
            name: misplaced(requirements, _unseen(fleet, host)) for name, (fleet, host) in self._hosts.items()
        }
        acceptable = [self._hosts[name] for name, reasons in refused.items() if not reasons]
        if acceptable:
            return acceptable
        named = [reasons for reasons in refused.values() if "fleets" not in {one.key for one in reasons}]
        if named:
            every = dict.fromkeys(str(reason) for reasons in named for reason in reasons)
            raise NoOfferError(f"no host will do: {'; '.join(every)}")
        known = ", ".join(fleet.name for fleet in self.fleets) or "none"
        asked = f"of the fleets {', '.join(requirements.fleets)} " if requirements.fleets else ""
        broken = "".join(f"; fleet '{name}' cannot be used: {why}" for name, why in self.unreadable.items())
        raise NoOfferError(f"there are no hosts {asked}(fleets: {known}): apply a fleet first{broken}")


def _unseen(fleet: Fleet, host: FleetHost) -> Offer:
    """Offer a host of which nothing is known but where it is."""
    return Offer(
        backend=SshBackend.name,
        fleet=fleet.name,
        # The first as dstack names them.
        instances=(f"{fleet.name}-{fleet.hosts.index(host)}", host.name, host.hostname),
        instance_type=host.name,
        cpus=0,
        memory_gb=0,
        price=0.0,
        slots=0,
    )


def _network(host: FleetHost) -> str:
    """Return the network on which other hosts reach it; empty where its own address there is not known."""
    return host.network or "" if host.internal_ip else ""


def _no_secret(name: str) -> str:
    raise NotFoundError(f"secrets.{name}: there is nothing to look it up in")


def _is_held(host: str, stamp: Stamp) -> bool:
    return any(claim.stamp.name == stamp.name for claim in held_claims(host))


def _claim(host: FleetHost, stamp: Stamp, requirements: Requirements) -> Claim | None:
    with _lock:
        lock = _locks.setdefault(host.name, threading.Lock())
    with lock:
        machine = host.machine()
        claims = claims_on(machine.docker(), host.name)
        for claim in claims:
            if claim.stamp.name == stamp.name:
                return claim
        capacity = HostCapacity(host.name, _inventory(host, machine), claims, host.blocks)
        share = capacity.claimable(requirements)
        if share is None:
            return None
        cpus, memory, gpus = share
        devices = tuple(gpu.id for gpu in gpus)
        claim = Claim(stamp=stamp, cpus=cpus, memory_gb=memory, gpu_devices=devices)
        hold(host.name, claim)
        return claim


def _inventory(host: FleetHost, machine: SshMachine) -> HostInventory:
    looked, inventory = _inventories.get(host, (0.0, None))
    if inventory is None or time.monotonic() - looked > FRESH:
        inventory = inspect(machine)
        _inventories[host] = (time.monotonic(), inventory)
    return inventory


def _instance(fleet: Fleet, host: FleetHost, claim: Claim | None = None) -> Instance:
    details = {"fleet": fleet.name}
    if claim is not None:
        details["replica"] = claim.stamp.name
    return Instance(
        backend=SshBackend.name,
        id=f"{fleet.name}/{host.name}",
        name=host.name,
        instance_type=host.name,
        address=host.hostname,
        private_address=host.internal_ip,
        network=host.network,
        price=0.0,
        gpu_devices=() if claim is None else claim.gpu_devices,
        details=details,
    )


def _describe(resources: Resources) -> str:
    asked = resources.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return ", ".join(f"{key} {_short(value)}" for key, value in asked.items()) or "nothing in particular"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {_short(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
