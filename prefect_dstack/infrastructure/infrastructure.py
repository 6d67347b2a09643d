"""Everything that a run may use, resolved once and passed on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from prefect_dstack.backends.base import (
    AnnouncesInterruptions,
    Backend,
    CreatedGateway,
    EditsDns,
    Instance,
    Offer,
    RunsWorkloads,
    TxtRecords,
)
from prefect_dstack.bundles import BundleStorage, BundleStore
from prefect_dstack.configurations import (
    GatewayConfiguration,
    ServiceConfiguration,
    load_configuration,
    resolve_gateway,
)
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.errors import (
    ConfigurationError,
    HostError,
    NoOfferError,
    NoRoomError,
    NotFoundError,
    ProvisioningError,
)
from prefect_dstack.gateways.choice import LOCAL, GatewayCandidate, choose_gateway
from prefect_dstack.hosts.identity import MachineIdentity, machine_identity
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.infrastructure.factories import GATEWAY_SLUG
from prefect_dstack.infrastructure.gateways import ManagedGateway, implicit_gateway
from prefect_dstack.infrastructure.observation import FoundReplica, Observation
from prefect_dstack.infrastructure.registry import configured_backends
from prefect_dstack.infrastructure.sources import BackendContext, DraftedSources, Sources
from prefect_dstack.runtimes.base import Runtime
from prefect_dstack.runtimes.process import ProcessRuntime

__all__ = ["Infrastructure"]

PARALLEL_MACHINES = 32
REMEDY = "apply its file again, or delete the block"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Infrastructure:
    """Backends, runtimes, machines and gateways by name, as they were when this was made.

    Args:
        sources: Reads what users have saved.
        home: The home directory of prefect-dstack on this machine.
        gateway_port: The base port of the gateway of this machine.
        bundle_storage: Where the files of revisions are kept for other machines; None: nowhere.
    """

    def __init__(
        self, sources: Sources, home: Path, gateway_port: int, bundle_storage: BundleStorage | None = None
    ) -> None:
        self.sources = sources
        self.home = home
        self.gateway_port = gateway_port
        self.bundle_storage = bundle_storage
        self._gateways: dict[str, ManagedGateway] = {}

    @functools.cached_property
    def here(self) -> MachineIdentity:
        """This machine and home directory, as others on the same Prefect API tell it from theirs."""
        return machine_identity(self.home)

    @functools.cached_property
    def backends(self) -> Mapping[str, Backend]:
        """The backends that are configured; the local one is always among them."""
        return configured_backends(BackendContext(self.home, self.gateway_port, self.sources))

    def backend(self, name: str, whose: str) -> Backend:
        """Return a backend.

        Args:
            name: The backend.
            whose: What asks for it, for the message.

        Raises:
            NotFoundError: If it is not configured.
        """
        if name not in self.backends:
            raise NotFoundError(f"{whose}: its backend {name} is not configured here; configure it again")
        return self.backends[name]

    def machine(self, instance: Instance) -> Machine:
        """Return the machine of an instance.

        Args:
            instance: The instance.

        Raises:
            NotFoundError: If its backend is not configured any more.
            HostError: If it cannot be reached.
        """
        return self.backend(instance.backend, instance.name).machine(instance)

    def runtime(self, instance: Instance, name: str) -> Runtime:
        """Return what starts replicas on an instance.

        Args:
            instance: The instance.
            name: `docker` or `process`.
        """
        backend = self.backend(instance.backend, instance.name)
        if isinstance(backend, RunsWorkloads):
            return backend.runtime(name)
        return self._process_runtime if name == "process" else self._docker_runtime

    def logs(
        self, found: FoundReplica, *, tail: int | None, follow: bool, since: datetime | None = None
    ) -> Iterator[str]:
        """Read what a replica writes; see `Runtime.logs`.

        Args:
            found: The replica.
            tail: Only so many lines from the end; None: all that is kept.
            follow: Go on with what it writes from now.
            since: Only what was written since then.
        """
        runtime, machine = self.runtime(found.instance, found.replica.runtime), self.machine(found.instance)
        return runtime.logs(machine, found.replica, tail=tail, follow=follow, since=since)

    @functools.cached_property
    def bundles(self) -> BundleStore:
        """The copies of the files of revisions that this machine has deployed, or has had to fetch."""
        return BundleStore(self.home / "bundles", self.bundle_storage)

    def sweep(self, *, dry_run: bool) -> list[str]:
        """Remove what is left on this machine of replicas whose launch or removal was cut off.

        Args:
            dry_run: Only find it.

        Returns:
            The names of those replicas.
        """
        return self._process_runtime.sweep(dry_run=dry_run)

    @functools.cached_property
    def _process_runtime(self) -> ProcessRuntime:
        return ProcessRuntime(self.home / "replicas", self.bundles)

    @functools.cached_property
    def _docker_runtime(self) -> Runtime:
        # The Docker SDK takes a second to import, which services of processes need not pay.
        from prefect_dstack.runtimes.docker import DockerRuntime

        return DockerRuntime(self.bundles)

    def is_owned(self, instance: Instance) -> bool:
        """Return whether an instance was created for one replica, and goes with it.

        Args:
            instance: The instance.
        """
        return self.backend(instance.backend, instance.name).stamp(instance) is not None

    def interrupted(self) -> list[Stamp]:
        """List the replicas whose machines their providers are about to take back.

        Raises:
            ProvisioningError: If a provider cannot be asked.
        """
        return [
            stamp
            for backend in self.backends.values()
            if isinstance(backend, AnnouncesInterruptions)
            for instance in backend.interrupted()
            if (stamp := backend.stamp(instance)) is not None
        ]

    def terminate(self, instance: Instance) -> None:
        """Release an instance; where machines are shared, release what was reserved on it.

        Args:
            instance: The instance.
        """
        self.backend(instance.backend, instance.name).terminate(instance)

    def txt_records(self) -> TxtRecords:
        """Return the DNS records that can be changed.

        Raises:
            ConfigurationError: If no backend can change any.
        """
        for backend in self.backends.values():
            if isinstance(backend, EditsDns):
                return backend.txt_records()
        raise ConfigurationError(
            "dns-01 writes to Route 53: save a DstackAwsBackend block named 'default', or use http-01",
            key="certificate.challenge",
        )

    def offers(self, requirements: Requirements) -> list[Offer]:
        """Return the offers of all backends for one replica.

        Args:
            requirements: What it needs.

        Returns:
            Offers, the cheapest first, those of unknown price last.

        Raises:
            NoOfferError: If there is none; says why, backend by backend.
        """
        offers: list[Offer] = []
        reasons: list[str] = []
        full = False
        for name in self._candidates(requirements):
            if name not in self.backends:
                reasons.append(f"{name}: not configured; configured are {', '.join(self.backends)}")
                continue
            if requirements.runtime not in self.backends[name].runtimes:
                reasons.append(f"{name}: runs containers only; name an 'image'")
                continue
            try:
                offers += self.backends[name].offers(requirements)
            except NoOfferError as error:
                reasons.append(str(error))
                full = full or isinstance(error, NoRoomError)
        if not offers:
            kind = NoRoomError if full else NoOfferError
            raise kind(f"{requirements.name}: no machine has what it asks for: {'; '.join(reasons)}")
        return sorted(offers, key=lambda offer: (offer.price is None, offer.price or 0.0))

    def _candidates(self, requirements: Requirements) -> list[str]:
        if requirements.backends:
            return list(requirements.backends)
        able = {
            name: backend
            for name, backend in self.backends.items()
            if requirements.runtime in backend.runtimes
        }
        if requirements.fleets and "ssh" in self.backends:
            return ["ssh"]
        preferred = [name for name, backend in able.items() if backend.preferred]
        return preferred or list(able)

    def instances(self, service: str | None, runtimes: Iterable[str]) -> list[Instance]:
        """List the machines on which replicas of a service may be.

        Args:
            service: The service; None: any.
            runtimes: What its replicas run in.

        Returns:
            Shared machines, and those that were created for the service.
        """
        wanted = frozenset(runtimes)
        instances = []
        for backend in self.backends.values():
            if not wanted & backend.runtimes:
                continue
            for instance in backend.instances():
                stamp = backend.stamp(instance)
                if service is None or stamp is None or stamp.service == service:
                    instances.append(instance)
        return instances

    def observe(
        self, service: str | None, runtimes: Iterable[str], instances: Sequence[Instance] | None = None
    ) -> Observation:
        """Query machines for their replicas in parallel; one that does not answer does not delay the others.

        Args:
            service: Only replicas of this service; None: of all.
            runtimes: What they run in.
            instances: The machines; default: all on which they may be.

        Returns:
            What was found.
        """
        wanted = sorted(set(runtimes))
        if instances is None:
            instances = self.instances(service, wanted)
        unlisted: dict[str, str] = {}

        def ask(instance: Instance) -> tuple[Instance, list[FoundReplica], str]:
            try:
                return instance, self._replicas_on(instance, wanted, service), ""
            except HostError as error:
                return instance, [], str(error)
            except ProvisioningError as error:
                unlisted[instance.name] = str(error)
                return instance, [], ""

        found: list[FoundReplica] = []
        empty: list[tuple[Instance, Stamp]] = []
        unreachable: dict[str, str] = {}
        for instance, there, problem in _at_once(ask, instances):
            found += there
            if problem:
                unreachable[instance.name] = problem
            stamp = self.backend(instance.backend, instance.name).stamp(instance)
            if stamp is not None and not there:
                empty.append((instance, stamp))
        return Observation(found=found, empty=empty, unreachable=unreachable, unlisted=unlisted)

    def _replicas_on(
        self, instance: Instance, runtimes: Sequence[str], service: str | None
    ) -> list[FoundReplica]:
        machine = self.machine(instance)
        able = self.backend(instance.backend, instance.name).runtimes
        found = []
        for name in runtimes:
            if name not in able:
                continue
            runtime = self.runtime(instance, name)
            found += [
                FoundReplica(instance, replica, runtime.status(machine, replica))
                for replica in runtime.replicas(machine)
                if service is None or replica.stamp.service == service
            ]
        return found

    @property
    def gateway_names(self) -> list[str]:
        """The gateway of this machine, and those that are configured."""
        return list(dict.fromkeys([LOCAL, *self._gateway_blocks]))

    @property
    def configured_gateways(self) -> list[str]:
        """The gateways that somebody has configured."""
        return list(self._gateway_blocks)

    def gateway(self, name: str) -> ManagedGateway:
        """Return a gateway; it may not run yet.

        Args:
            name: Its name.

        Raises:
            NotFoundError: If there is no such gateway.
            ConfigurationError: If the block that describes it cannot be used.
        """
        if name not in self._gateways:
            self._gateways[name] = self._make_gateway(name)
        return self._gateways[name]

    def find_gateway(self, name: str) -> ManagedGateway | None:
        """Return a gateway; None if nobody knows it, or not any more: then it routes nothing.

        Args:
            name: Its name.

        Raises:
            ConfigurationError: If the block that describes it cannot be used.
        """
        return self.gateway(name) if name in self.gateway_names else None

    def new_gateway(self, configuration: GatewayConfiguration) -> ManagedGateway:
        """Return a gateway as it would be with another configuration, or that does not exist yet.

        Args:
            configuration: The configuration; it has a name.
        """
        name = configuration.name or ""
        data = {
            **self._gateway_blocks.get(name, {}),
            "configuration": configuration.model_dump(mode="json", exclude_unset=True) | {"type": "gateway"},
            "directory": str(configuration.directory),
        }
        drafted = DraftedSources(self.sources, GATEWAY_SLUG, name, data)
        return Infrastructure(drafted, self.home, self.gateway_port).gateway(name)

    def gateway_for(self, configuration: ServiceConfiguration, before: str | None = None) -> ManagedGateway:
        """Choose the gateway of a service.

        Args:
            configuration: The service.
            before: The gateway that it has had, kept where the configuration leaves the choice.

        Raises:
            NotFoundError: If it names one that does not exist.
            ConfigurationError: If there are several and none is the default.
        """
        wanted = resolve_gateway(configuration, self.sources.secret)
        asks_address = isinstance(wanted, str) and wanted.rpartition("/")[2] not in self.gateway_names
        named = wanted.rpartition("/")[2] if isinstance(wanted, str) else None
        candidates = [
            self._candidate(name, with_address=asks_address)
            for name in sorted(self._gateway_blocks)
            if name == named or not self._is_elsewhere(name)
        ]
        name = choose_gateway(
            wanted,
            candidates,
            before=before,
            written=str(configuration.gateway),
            source=configuration.source_name,
        )
        return self.gateway(name)

    def _is_elsewhere(self, name: str) -> bool:
        try:
            return self.here.differs_from(self.gateway(name).location)
        except ConfigurationError:
            return False

    def _candidate(self, name: str, *, with_address: bool) -> GatewayCandidate:
        try:
            gateway = self.gateway(name)
        except ConfigurationError:
            # It harms only those who get it; whoever does is told.
            written = self._gateway_blocks[name].get("configuration") or {}
            return GatewayCandidate(name, default=written.get("default") is True, usable=False)
        return GatewayCandidate(
            name=name,
            default=gateway.configuration.default,
            domain=gateway.configuration.domain,
            address=gateway.address if with_address else "",
        )

    @functools.cached_property
    def _gateway_blocks(self) -> Mapping[str, Mapping[str, Any]]:
        return self.sources.block_data(GATEWAY_SLUG)

    def _make_gateway(self, name: str) -> ManagedGateway:
        data = self._gateway_blocks.get(name)
        if data is None:
            if name != LOCAL:
                known = ", ".join([*self._gateway_blocks, LOCAL])
                raise NotFoundError(f"{name}: there is no such gateway; there are: {known}")
            configuration = implicit_gateway(self.gateway_port)
        else:
            configuration = _gateway_configuration(name, data)
        return ManagedGateway(
            name,
            configuration,
            self.backends.get(configuration.backend),
            created=None if data is None else _created(name, data),
            implicit=data is None,
            tokens=self.sources.tokens,
            location=None if data is None else _location(name, data),
        )


def _gateway_configuration(name: str, data: Mapping[str, Any]) -> GatewayConfiguration:
    try:
        loaded = load_configuration(
            data.get("configuration") or {}, name=name, directory=data.get("directory") or "."
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"gateway '{name}': its block cannot be used: {error}; {REMEDY}") from error
    if not isinstance(loaded, GatewayConfiguration):
        raise ConfigurationError(f"gateway '{name}': its block holds a {loaded.type}; {REMEDY}")
    return loaded


def _location(name: str, data: Mapping[str, Any]) -> MachineIdentity | None:
    if data.get("location") is None:
        return None
    try:
        return MachineIdentity.model_validate(data["location"])
    except ValidationError as error:
        raise _unusable(name, "location", error) from None


def _created(name: str, data: Mapping[str, Any]) -> CreatedGateway | None:
    details = data.get("details") or {}
    if "instance" not in details:
        return None
    try:
        return CreatedGateway.model_validate(details)
    except ValidationError as error:
        raise _unusable(name, "details", error) from None


def _unusable(name: str, field: str, error: ValidationError) -> ConfigurationError:
    first = error.errors()[0]
    place = ".".join(map(str, (field, *first["loc"])))
    return ConfigurationError(
        f"gateway '{name}': its block cannot be used: {place}: {first['msg']}; {REMEDY}"
    )


def _at_once(action: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    if len(items) <= 1:
        return [action(item) for item in items]
    with ThreadPoolExecutor(min(len(items), PARALLEL_MACHINES)) as pool:
        return [done.result() for done in [pool.submit(copy_context().run, action, item) for item in items]]
