"""A gateway as an object: its configuration, where it runs, what it routes, and how it reaches replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect_dstack.backends.base import (
    CreatedGateway,
    GatewayHost,
    GatewayMachines,
    HostsGateways,
    Instance,
    ProvidesGatewayMachines,
    Report,
)
from prefect_dstack.configurations import GatewayConfiguration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.tokens import Token
from prefect_dstack.errors import (
    ConfigurationError,
    GatewayError,
    HostUnreachableError,
    NotFoundError,
    PrefectDstackError,
)
from prefect_dstack.gateways.attachment import Attachment, direct_address
from prefect_dstack.gateways.choice import LOCAL
from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.observation import ReplicaHealth
from prefect_dstack.gateways.route import Preview
from prefect_dstack.gateways.state import GatewayState, Route, RouteReplica
from prefect_dstack.gateways.transitions import EVEN_WEIGHT, configured, keeping_replicas, with_tokens
from prefect_dstack.hosts.identity import MachineIdentity
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.infrastructure.observation import GatewayObservation
from prefect_dstack.runtimes.base import Replica

if TYPE_CHECKING:
    from prefect_dstack.gateways.tunnels import TunnelHolder
    from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = ["ManagedGateway", "entered_over_ssh", "implicit_gateway"]


class ManagedGateway:
    """One gateway, configured or implicit.

    Args:
        name: Its name.
        configuration: As it was written; for the gateway of this machine, what it is without being written.
        backend: The backend that it runs on; None: that one is not configured here.
        created: The machine that was created for it, and its DNS records; None where none is created.
        implicit: Whether it comes with the first service and goes with the last.
        tokens: Returns all tokens that open services.
        location: The machine that it is on, if only programs there reach it; None: not known, or any.
    """

    def __init__(
        self,
        name: str,
        configuration: GatewayConfiguration,
        backend: Any,
        *,
        created: CreatedGateway | None = None,
        implicit: bool = False,
        tokens: Callable[[], Sequence[Token]] = tuple,
        location: MachineIdentity | None = None,
    ) -> None:
        self.name = name
        self.configuration = configuration
        self.created = created
        self.implicit = implicit
        self.location = location
        self._backend: Any = backend
        self._tokens = tokens
        self._host: GatewayHost | None = None
        self._control: Gateway | None = None

    def __repr__(self) -> str:
        return f"ManagedGateway({self.name!r})"

    @property
    def host(self) -> GatewayHost:
        """Where it runs.

        Raises:
            GatewayError: If its machine is not known, or its backend is not configured.
        """
        if self._host is None:
            if not isinstance(self._backend, HostsGateways):
                raise GatewayError(
                    f"gateway '{self.name}': the backend '{self.configuration.backend}' is not configured "
                    "here, or no gateway can run on it; configure it again"
                )
            instance = None if self.created is None else self.created.instance
            self._host = self._backend.gateway_host(self.name, self.configuration, instance)
        return self._host

    @property
    def control(self) -> Gateway:
        """What changes it and asks it; it may not run yet."""
        if self._control is None:
            self._control = Gateway(self.host.place)
        return self._control

    @property
    def address(self) -> str:
        """Where it is reached from here; empty while its machine was not created yet."""
        if self.created is not None:
            return self.created.instance.address
        try:
            return self.host.attachment.address
        except GatewayError:
            return ""

    @property
    def bound_to_machine(self) -> bool:
        """Whether it runs on a machine that only programs there reach, as the local one does."""
        # One whose machine is created is asked before there is any.
        provided = isinstance(self._backend, ProvidesGatewayMachines)
        return isinstance(self._backend, HostsGateways) and not provided and not self.host.public

    @property
    def machines(self) -> GatewayMachines | None:
        """What creates and deletes its machine; None where none is created."""
        return (
            self._backend.gateway_machines() if isinstance(self._backend, ProvidesGatewayMachines) else None
        )

    def initial_state(self) -> GatewayState:
        """Return the state that it begins with: no routes."""
        host = self.host
        return GatewayState(
            name=self.name,
            bind_address="*" if host.public else "127.0.0.1",
            base_port=self.configuration.port or host.port,
            https_port=self.configuration.effective_https_port,
            domain=self.configuration.domain,
        )

    def state(self) -> GatewayState | None:
        """Return what it routes; None if it does not exist (yet, or any more).

        Raises:
            GatewayError: If it cannot be read.
            HostError: If its host cannot be reached.
        """
        try:
            return self.control.state()
        except NotFoundError:
            return None

    def running(self) -> bool:
        """Return whether its HAProxy is there, or about to be back.

        Raises:
            GatewayError: If it cannot be found out.
            HostError: If its host cannot be reached.
        """
        try:
            return self.host.place.running()
        except NotFoundError:
            return False

    def health(self, service: str) -> dict[str, ReplicaHealth]:
        """Return what it thinks of the replicas of a service.

        Args:
            service: The service.

        Returns:
            Their health by replica; none if it does not answer.
        """
        try:
            return self.control.replica_health(service)
        except PrefectDstackError:
            return {}

    def unusable(self, service: str) -> dict[str, str]:
        """Return the replicas of a service that it routes and cannot use.

        Args:
            service: The service.

        Returns:
            The results of its last checks, by replica; none if it does not answer.
        """
        health = self.health(service)
        return {replica: it.check for replica, it in health.items() if it.status == "DOWN"}

    def observe(self) -> GatewayObservation:
        """Return what it is like now, for all of its services.

        Raises:
            GatewayError: If its state cannot be read.
            HostError: If its host cannot be reached.
        """
        state, running = self.state(), self.running()
        try:
            look = self.control.look() if running else None
        except PrefectDstackError:
            look = None
        return GatewayObservation(state, running, look)

    def port_is_free(self, port: int) -> bool:
        """Return whether no other program listens on a port of its machine.

        Args:
            port: The TCP port.
        """
        return self.host.place.port_is_free(port, "*" if self.host.public else "127.0.0.1")

    def ensure(self, route_of: Callable[[GatewayState], Route] | None = None) -> GatewayState:
        """Start it unless it runs, bring it up to date with its configuration, and take a route.

        A route is chosen and taken in one step, so that two services which are deployed at once do not get
        the same port. It has no replicas yet; the route of a service that has one already is left as it is.

        Args:
            route_of: Returns the route of a service, given the state of the gateway; None: no route.

        Returns:
            The state that it has then.

        Raises:
            ConflictError: If the route needs what another service holds.
            GatewayError: If it cannot be started.
        """
        initial = self.initial_state()

        def transition(state: GatewayState) -> GatewayState:
            state = configured(state, initial)
            if route_of is not None:
                route = route_of(state)
                if route.service not in state.routes:
                    state = state.with_route(route)
            return with_tokens(state.with_models_port(self.port_is_free), self._tokens())

        state = self.control.ensure(initial, transition)
        self._open_ports(state)
        return state

    def register(self, route: Route, member: RouteReplica) -> None:
        """Route requests to a replica.

        Args:
            route: The route of its service, for a gateway that has none.
            member: The replica as the gateway reaches it.
        """

        def registered(state: GatewayState) -> GatewayState:
            known = state.routes.get(route.service)
            if known is None:
                state = state.with_route(route).with_models_port(self.port_is_free)
                state = with_tokens(state, self._tokens())
            elif known.health_check != route.health_check:
                return state.with_replica(route.service, member.model_copy(update={"checked": False}))
            return state.with_replica(route.service, member)

        self._open_ports(self.control.change(registered))

    def update(self, route_of: Callable[[GatewayState], Route]) -> Route:
        """Bring the settings of a route up to date; its replicas stay.

        Args:
            route_of: Returns the route, given the state of the gateway.

        Returns:
            The route as it is then.

        Raises:
            ConflictError: If the route needs what another service holds.
        """
        found: list[Route] = []

        def updated(state: GatewayState) -> GatewayState:
            route = keeping_replicas(state, route_of(state))
            found.append(route)
            return with_tokens(state.with_route(route).with_models_port(self.port_is_free), self._tokens())

        self._open_ports(self.control.change(updated))
        return found[-1]

    def unregister(self, stamp: Stamp) -> None:
        """Remove a replica from its route; no error if it is not there.

        Args:
            stamp: The replica.
        """
        state = self.state()
        if state is not None and stamp.service in state.routes:
            self.control.change(lambda state: state.without_replica(stamp.service, stamp.name))

    def preview(self, service: str, preview: Preview | None) -> None:
        """Let those who have a token ask a revision that gets no requests.

        Args:
            service: The service; no error if it is not there.
            preview: The revision and a replica of it; None: no revision any more.
        """
        state = self.state()
        route = None if state is None else state.routes.get(service)
        if route is not None and route.preview != preview:
            self.control.change(
                lambda state: with_tokens(state.with_preview(service, preview), self._tokens())
            )

    def remove_route(self, service: str) -> bool:
        """Remove a service from the gateway. An implicit gateway goes with its last route.

        Args:
            service: The service; no error if it is not there.

        Returns:
            Whether the gateway is gone.
        """

        def removed(state: GatewayState) -> GatewayState:
            return state.without_route(service).with_models_port(self.port_is_free)

        def obsolete(state: GatewayState) -> bool:
            return self.implicit and not state.routes

        return obsolete(self.control.change_or_destroy(removed, obsolete))

    def share(self, service: str, weights: Mapping[int, int]) -> None:
        """Set the weights of a service's replicas, by their revision.

        Args:
            service: The service.
            weights: The weight of each replica by revision; the usual one for those of other revisions. None
                at all ends the comparison of revisions.
        """

        def shared(state: GatewayState) -> GatewayState:
            for name in state.route(service).replicas:
                revision = int(name.rsplit("-", 2)[1])
                state = state.with_weight(service, name, weights.get(revision, EVEN_WEIGHT))
            return state.comparing(service, compared=bool(weights))

        self.control.change(shared)

    def reach(self, instance: Instance, machine: Machine, replica: Replica) -> tuple[str, int]:
        """Ensure that the gateway can reach a replica. Run twice, there is one tunnel.

        Args:
            instance: Where the replica runs.
            machine: The machine of that instance.
            replica: The replica.

        Returns:
            The address and port at which the gateway reaches it.

        Raises:
            GatewayError: If there is no way.
            HostError: If one of the machines fails.
        """
        there = Attachment(instance.address, instance.private_address, instance.network)
        direct = direct_address(self.host.attachment, there)
        if direct is not None and direct == replica.address:
            return replica.address, replica.port
        far = entered_over_ssh(machine)
        if far is None:
            raise GatewayError(
                f"gateway '{self.name}' cannot reach replicas on {instance.name}: use a gateway on the same "
                "machine or private network, such as 'local' for this machine, or run the service on a fleet"
            )
        # paramiko takes its time to import, which services of this machine need not pay.
        from prefect_dstack.gateways.tunnels import open_tunnel

        port = open_tunnel(self.host.tunnels(), far, replica.stamp, replica.address, replica.port)
        return "127.0.0.1", port

    def unreach(self, stamp: Stamp, machine: Machine | None) -> None:
        """End the tunnel to a replica, if there is one.

        Args:
            stamp: The replica.
            machine: Where it runs, or ran; None: on no machine that is known.

        Raises:
            HostError: If a machine does not answer.
        """
        far = None if machine is None else entered_over_ssh(machine)
        if machine is not None and far is None:
            return
        holder = self._holder()
        if holder is None or not any(held.stamp.name == stamp.name for held in holder.held()):
            return
        from prefect_dstack.gateways.tunnels import close_tunnel

        try:
            close_tunnel(holder, far, stamp)
        except HostUnreachableError:
            if far is None:
                raise
            close_tunnel(holder, None, stamp)

    def tunnels(self) -> list[Stamp]:
        """List the replicas to which it holds tunnels."""
        holder = self._holder()
        return [] if holder is None else [held.stamp for held in holder.held()]

    def provision(self, report: Report) -> CreatedGateway | None:
        """Create its machine, with its address and its DNS records. Run twice, it finds the first one.

        Args:
            report: Told of progress.

        Returns:
            The machine; None where gateways run on machines that are there already.
        """
        machines = self.machines
        if machines is None:
            return None
        self.created = machines.create(self.name, self.configuration, report)
        self._host = self._control = None
        return self.created

    def destroy(self) -> None:
        """Remove it with all that was made for it."""
        machines = self.machines
        if machines is not None:
            machines.delete(self.name, self.configuration.domain)
        else:
            self.control.destroy()

    def require_backend(self) -> None:
        """Raise where its backend is not configured.

        Raises:
            ConfigurationError: If it is not.
        """
        if self._backend is None:
            raise ConfigurationError(
                f"gateway '{self.name}' needs the backend '{self.configuration.backend}', which is not "
                "configured here",
                key="backend",
            )

    def _holder(self) -> TunnelHolder | None:
        return self.host.tunnels() if self.host.may_hold_tunnels() else None

    def _open_ports(self, state: GatewayState) -> None:
        machines = self.machines
        if machines is not None:
            machines.open_ports(self.name, [*state.http_ports, *state.https_ports])


def entered_over_ssh(machine: Any) -> SshMachine | None:
    """Return a machine as one that tunnels can be led to; None if it cannot be entered over SSH.

    Args:
        machine: Any machine.
    """
    return machine if hasattr(machine, "connection") and hasattr(machine, "root") else None


def implicit_gateway(port: int) -> GatewayConfiguration:
    """Return what the gateway of this machine is without being configured.

    Args:
        port: The port of services that name none.
    """
    return GatewayConfiguration(name=LOCAL, port=port)
