"""The actions on the world themselves: on replicas, their machines and the gateways in front of them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.configurations import Environment, Probe
from prefect_dstack.controller.convergence import Log
from prefect_dstack.domain.readiness import Readiness
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements, WorkloadSpec
from prefect_dstack.errors import (
    CapacityError,
    GatewayError,
    HostError,
    HostUnreachableError,
    NotFoundError,
    ReplicaExitedError,
    ReplicaNotReadyError,
)
from prefect_dstack.gateways.state import Route, RouteReplica
from prefect_dstack.gateways.template import NO_SERVICE
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus, Runtime
from prefect_dstack.runtimes.probes import Answer, ask
from prefect_dstack.runtimes.process import ProcessRuntime

__all__ = [
    "ask_endpoint",
    "drain_replica",
    "launch_replica",
    "provision_instance",
    "register_replica",
    "remove_replica",
    "terminate_instance",
    "unregister_replica",
    "verify_endpoint",
    "wait_until_ready",
]

# Between two probes, a replica that has ended is noticed within so many seconds.
LOOK_INTERVAL = 0.5
LAST_LINES = 10
# How often a replica may find that what was chosen for it was taken meanwhile.
ATTEMPTS = 4
POLL = 0.1
REPORT_INTERVAL = 10.0
# An answer of the gateway itself is shorter.
BODY_READ = 1000
VERIFY_TIMEOUT = 30.0


def provision_instance(
    infrastructure: Infrastructure,
    offers: Sequence[Offer],
    stamp: Stamp,
    requirements: Requirements,
    log: Log,
) -> Instance:
    """Get a machine for a replica.

    Args:
        infrastructure: Where machines come from.
        offers: The offers to try, in order.
        stamp: For whom.
        requirements: What it needs.
        log: Told of progress.

    Returns:
        The instance.

    Raises:
        CapacityError: If none of the offers can be had.
    """
    refusals = []
    for name, group in itertools.groupby(offers, key=lambda offer: offer.backend):
        backend = infrastructure.backend(name, stamp.name)
        try:
            instance = backend.provision(list(group), stamp, requirements, log.info)
        except CapacityError as error:
            refusals.append(str(error))
        else:
            log.info("%s: on %s", stamp.name, instance.name)
            return instance
    raise CapacityError("; ".join(refusals))


def launch_replica(infrastructure: Infrastructure, instance: Instance, launch: Launch, log: Log) -> Replica:
    """Start a replica on an instance.

    Args:
        infrastructure: Where the instance belongs.
        instance: The machine.
        launch: What to start.
        log: Told of progress.

    Returns:
        The replica; it may not listen yet.
    """
    for attempt in range(1, ATTEMPTS + 1):
        machine = infrastructure.machine(instance)
        stamp = launch.stamp.model_copy(update={"machine": machine.identity or ""})
        launch = launch.model_copy(
            update={
                "gpu_devices": instance.gpu_devices,
                "stamp": stamp,
                "spec": _in_its_network(launch.spec, instance),
            }
        )
        try:
            return infrastructure.runtime(instance, launch.spec.runtime).launch(machine, launch, log.info)
        except CapacityError as error:
            if attempt == ATTEMPTS:
                raise
            log.info("%s: %s, looking for another", launch.stamp.name, error)
        # Another deployment was faster.
        backend = infrastructure.backend(instance.backend, launch.stamp.name)
        backend.terminate(instance)
        requirements = launch.spec.requirements
        offers = backend.offers(requirements)
        if requirements.interconnected:
            offers = [offer for offer in offers if offer.network == (instance.network or "")]
        instance = backend.provision(offers, launch.stamp, requirements, log.info)
    raise AssertionError  # pragma: no cover


def wait_until_ready(
    infrastructure: Infrastructure,
    found: FoundReplica,
    probes: Sequence[Probe],
    environment: Environment,
    timeout: float,
    abandoned: threading.Event,
    log: Log,
) -> None:
    """Wait until a replica has passed its probes; without any, until its port answers.

    Args:
        infrastructure: Where it runs.
        found: The replica.
        probes: What it must pass.
        environment: Its secrets are taken out of what the replica has written last.
        timeout: Seconds to wait at most.
        abandoned: Set when the answer does not matter any more.
        log: Told of progress.

    Raises:
        ReplicaExitedError: If it ended meanwhile.
        ReplicaNotReadyError: If it did not pass in time.
    """
    replica = found.replica
    machine = infrastructure.machine(found.instance)
    runtime = infrastructure.runtime(found.instance, replica.runtime)
    readiness = Readiness(probes or (Probe(type="tcp"),))
    restarts, told = runtime.status(machine, replica).restarts, ""
    start = time.monotonic()
    answer = Answer(passed=False, detail="")
    while (elapsed := time.monotonic() - start) < timeout and not abandoned.is_set():
        status = runtime.status(machine, replica)
        if status.state in ("exited", "gone", "restarting") or status.restarts > restarts:
            raise ReplicaExitedError(_ended(replica, status)).with_details(
                _last_lines(runtime, machine, replica, environment)
            )
        answers = []
        for probe in readiness.due(elapsed):
            answers.append(ask(machine, replica, probe))
            readiness.note(probe, passed=answers[-1].passed, now=time.monotonic() - start)
        answer = min(answers, key=lambda it: it.passed, default=answer)  # one that failed, if any did
        if readiness.ready:
            log.info("%s: ready after %.1f s (%s)", replica.name, elapsed, answer.detail)
            return
        if answer.detail != told and elapsed > 1:
            told = answer.detail
            log.info("%s: waiting for %s", replica.name, answer.detail)
        abandoned.wait(min(readiness.wait(time.monotonic() - start), LOOK_INTERVAL))
    if abandoned.is_set():
        raise ReplicaNotReadyError(f"{replica.name}: was abandoned before it was ready")
    message = environment.hide(_never_ready(runtime, replica, answer, timeout))
    raise ReplicaNotReadyError(message).with_details(_last_lines(runtime, machine, replica, environment))


def register_replica(
    infrastructure: Infrastructure,
    gateway: ManagedGateway,
    route: Route,
    found: FoundReplica,
    weight: int,
    log: Log,
    *,
    direct: bool = True,
) -> None:
    """Route requests to a replica.

    Args:
        infrastructure: Where the replica runs.
        gateway: The gateway.
        route: The route of its service.
        found: The replica.
        weight: Its share of the requests, relative to the weights of the others.
        log: Told of progress.
        direct: Whether clients' requests go to it, and not through a router.
    """
    machine = infrastructure.machine(found.instance)
    address, port = gateway.reach(found.instance, machine, found.replica)
    name = found.replica.name
    member = RouteReplica(name=name, address=address, port=port, weight=weight, direct=direct)
    gateway.register(route, member)
    gets = "gets requests from" if direct and weight else "is checked by"
    log.info("%s: %s gateway %s at %s:%d", name, gets, gateway.name, address, port)


def drain_replica(
    gateway: ManagedGateway, service: str, replica_name: str, timeout: float | None, log: Log
) -> None:
    """Drain a replica: send it no new requests, and wait for the open ones to end.

    Args:
        gateway: The gateway.
        service: The service.
        replica_name: The replica.
        timeout: Seconds to wait at most; what is still open then is cut when the replica is removed. None: no
            limit.
        log: Told of progress.
    """
    control = gateway.control
    try:
        control.change(lambda state: state.draining(service, replica_name))
    except NotFoundError:
        # It is out of the route already: somebody else has seen to it.
        return
    start = told = time.monotonic()
    while (still_open := control.open_requests(service)[replica_name]) > 0:
        now = time.monotonic()
        noun = "request is" if still_open == 1 else "requests are"
        if timeout is not None and now - start >= timeout:
            log.warning("%s: %d %s still open after %.0f s", replica_name, still_open, noun, timeout)
            return
        if now - told >= REPORT_INTERVAL:
            told = now
            log.info("%s: draining, %d %s still open", replica_name, still_open, noun)
        time.sleep(POLL)
    log.info("%s: drained in %.1f s", replica_name, time.monotonic() - start)


def unregister_replica(
    infrastructure: Infrastructure, gateway: ManagedGateway, stamp: Stamp, instance: Instance | None
) -> None:
    """Remove a replica from a route, and close the tunnel to it.

    Args:
        infrastructure: Where the replica runs.
        gateway: The gateway.
        stamp: The replica; no error if it is not there.
        instance: Where it runs; None: its machine is gone.
    """
    if gateway.state() is None:
        return
    gateway.unregister(stamp)
    gateway.unreach(stamp, None if instance is None else infrastructure.machine(instance))


def remove_replica(infrastructure: Infrastructure, found: FoundReplica, grace: float, log: Log) -> None:
    """Stop a replica with SIGTERM, then SIGKILL, and remove every trace of it.

    Args:
        infrastructure: Where it runs.
        found: The replica.
        grace: Seconds between the signals.
        log: Told of the result.
    """
    replica = found.replica
    try:
        runtime = infrastructure.runtime(found.instance, replica.runtime)
        runtime.remove(infrastructure.machine(found.instance), replica, grace)
    except HostUnreachableError as error:
        log.warning("%s is left for reconcile-services: %s", replica.name, error)
        return
    log.info("%s: removed", replica.name)


def terminate_instance(infrastructure: Infrastructure, instance: Instance, log: Log) -> None:
    """Release an instance, and verify that it is gone.

    Args:
        infrastructure: Where it belongs.
        instance: The machine.
        log: Told of the result.
    """
    infrastructure.terminate(instance)
    log.info("%s: terminated", instance.name)


def verify_endpoint(url: str, address: str, path: str, timeout: float, log: Log) -> int:
    """Request the endpoint until it answers, the way a client does.

    Args:
        url: The endpoint.
        address: The address of the gateway, in case the host name of the URL is not known here.
        path: What to ask for.
        timeout: Seconds within which it must answer.
        log: Told of the result.

    Returns:
        The status that the application answered with; 401 where a token is needed; 0 if it was too slow.

    Raises:
        GatewayError: If the gateway cannot be reached, or it reaches no replica.
    """
    deadline = time.monotonic() + timeout
    detail = ""
    while time.monotonic() < deadline:
        try:
            status, body = ask_endpoint(url, address, path)
        except TimeoutError:
            log.warning("%s: took the request, but has not answered it within 10 s", url)
            return 0
        except (OSError, http.client.HTTPException) as error:
            detail = str(error) or type(error).__name__
        else:
            if status not in (502, 503, 504) and (status, body) != (NO_SERVICE.status, NO_SERVICE.body):
                log.info("%s answers: %d", url, status)
                return status
            detail = f"the gateway answers {status}"
        time.sleep(POLL)
    raise GatewayError(f"{url}: does not answer: {detail}")


def ask_endpoint(url: str, address: str, path: str, timeout: float = 10.0) -> tuple[int, str]:
    """Request an endpoint once, the way a client does.

    Args:
        url: The endpoint.
        address: The address of the gateway, in case the host name of the URL is not known here.
        path: What to ask for, below the path of the URL.
        timeout: Seconds that the connection, and the answer, may take.

    Returns:
        The status; and the beginning of the body where the status is that of a path without a service.

    Raises:
        OSError: If there is no connection, or no answer in time.
        HTTPException: If the answer is no HTTP.
    """
    parts = urlsplit(url)
    host = parts.hostname or address
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        try:
            stream: socket.socket = socket.create_connection((address, port), timeout=timeout)
        except TimeoutError as error:
            raise OSError(f"no connection to {address}:{port} within {timeout:g} s") from error
        if parts.scheme == "https":
            # Whether the chain is one that clients trust is another question than whether a replica answers.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            stream = context.wrap_socket(stream, server_hostname=host)
        connection.sock = stream
        connection.request("GET", parts.path.rstrip("/") + path, headers={"User-Agent": "prefect-dstack"})
        answer = connection.getresponse()
        told = answer.read(BODY_READ) if answer.status == NO_SERVICE.status else b""
        return answer.status, told.decode(errors="replace")
    finally:
        connection.close()


def _in_its_network(spec: WorkloadSpec, instance: Instance) -> WorkloadSpec:
    """Let a replica that connects to others use all ports of a machine that it has to itself.

    Servers that exchange more than requests, as prefill and decode do, choose their ports as they run.
    """
    if not spec.requirements.interconnected or not instance.exclusive:
        return spec
    return spec.model_copy(update={"host_network": True})


def _ended(replica: Replica, status: ReplicaStatus) -> str:
    if status.out_of_memory:
        how = "it ran out of memory: raise resources.memory"
    elif status.state == "gone":
        how = "it was removed by somebody else"
    elif status.exit_code is not None and status.exit_code < 0:
        how = f"it was ended by signal {-status.exit_code}"
    else:
        how = f"it exited with code {status.exit_code}"
    return f"{replica.name}: {how} before it was ready"


def _never_ready(runtime: Runtime, replica: Replica, answer: Answer, timeout: float) -> str:
    hint = ""
    if isinstance(runtime, ProcessRuntime):
        others = [port for port in runtime.listening_ports(replica) if port != replica.port]
        if others:
            heard = ", ".join(map(str, others))
            hint = (
                f" (it listens on {heard}; a process must listen on $PORT, so that two revisions can overlap)"
            )
    return f"{replica.name}: not ready within {timeout:.0f} s: {answer.detail}{hint}"


def _last_lines(runtime: Runtime, machine: Machine, replica: Replica, environment: Environment) -> list[str]:
    lines: list[str] = []
    with contextlib.suppress(HostError):
        lines = list(runtime.logs(machine, replica, tail=LAST_LINES))
    # Hidden as one text: a secret may have several lines.
    hidden = environment.hide("\n".join(lines)).splitlines()
    return [line.rstrip() for line in hidden if line.strip()] or ["(it wrote nothing)"]
