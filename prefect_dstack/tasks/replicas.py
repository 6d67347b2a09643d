"""Tasks on replicas: provision, launch, wait, drain, remove."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.configurations import Environment, Probe, ServiceConfiguration
from prefect_dstack.domain.readiness import Readiness
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import (
    CapacityError,
    HostError,
    HostUnreachableError,
    ReplicaExitedError,
    ReplicaNotReadyError,
)
from prefect_dstack.hosts.machine import Machine
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus
from prefect_dstack.runtimes.probes import Answer, ask
from prefect_dstack.runtimes.process import ProcessRuntime
from prefect_dstack.tasks import connections
from prefect_dstack.tasks.retrying import may_help, may_help_to_provision

__all__ = ["launch_replica", "provision_instance", "remove_replica", "terminate_instance", "wait_until_ready"]

# Between two probes, a replica that has ended is noticed within so many seconds.
LOOK_INTERVAL = 0.5
LOG_LINES = 10
# How often a replica may find that what was chosen for it was taken meanwhile.
ATTEMPTS = 4


@task(
    name="provision-instance",
    task_run_name="provision-instance {stamp.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=may_help_to_provision,
)
def provision_instance(
    offers: Sequence[Offer], stamp: Stamp, configuration: ServiceConfiguration
) -> Instance:
    """Get a machine for a replica.

    Args:
        offers: The offers to try, in order.
        stamp: For whom.
        configuration: Of the service.

    Returns:
        The instance.
    """
    logger = get_run_logger()
    backends = connections.backends()
    refusals = []
    for name, group in itertools.groupby(offers, key=lambda offer: offer.backend):
        try:
            instance = backends[name].provision(list(group), stamp, configuration, logger.info)
        except CapacityError as error:
            refusals.append(str(error))
        else:
            logger.info("%s: on %s", stamp.name, instance.name)
            return instance
    raise CapacityError("; ".join(refusals))


@task(
    name="launch-replica",
    task_run_name="launch-replica {launch.stamp.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=may_help,
)
def launch_replica(instance: Instance, launch: Launch) -> Replica:
    """Start a replica on an instance.

    Args:
        instance: The machine.
        launch: What to start.

    Returns:
        The replica; it may not listen yet.
    """
    runtime, report = connections.runtime_for(launch.configuration), get_run_logger().info
    for attempt in range(1, ATTEMPTS + 1):
        launch = launch.model_copy(update={"gpu_devices": instance.gpu_devices})
        try:
            return runtime.launch(connections.machine(instance), launch, report)
        except CapacityError as error:
            if attempt == ATTEMPTS:
                raise
            report(f"{launch.stamp.name}: {error}, looking for another")
        # Another deployment was faster.
        backend = connections.backends()[instance.backend]
        backend.terminate(instance)
        instance = backend.provision(
            backend.offers(launch.configuration), launch.stamp, launch.configuration, report
        )
    raise AssertionError  # pragma: no cover


@task(name="wait-until-ready", task_run_name="wait-until-ready {replica.name}", cache_policy=NO_CACHE)
def wait_until_ready(
    instance: Instance,
    replica: Replica,
    configuration: ServiceConfiguration,
    environment: Environment,
    timeout: float,
    abandoned: threading.Event,
) -> None:
    """Wait until a replica has passed its probes; without any, until its port answers.

    Args:
        instance: Where it runs.
        replica: The replica.
        configuration: Of the service.
        environment: Its secrets are taken out of what the replica has written last.
        timeout: Seconds to wait at most.
        abandoned: Set by the flow when the answer does not matter any more.

    Raises:
        ReplicaExitedError: If it ended meanwhile.
        ReplicaNotReadyError: If it did not pass in time.
    """
    logger = get_run_logger()
    machine = connections.machine(instance)
    runtime = connections.runtime(replica.runtime)
    readiness = Readiness(configuration.probes or (Probe(type="tcp"),))
    restarts, told = runtime.status(machine, replica).restarts, ""
    start = time.monotonic()
    answer = Answer(passed=False, detail="")
    while (elapsed := time.monotonic() - start) < timeout and not abandoned.is_set():
        status = runtime.status(machine, replica)
        if status.state in ("exited", "gone") or status.restarts > restarts or _crashing(status):
            raise ReplicaExitedError(environment.hide(_ended(machine, replica, status)))
        answers = []
        for probe in readiness.due(elapsed):
            answers.append(ask(machine, replica, probe))
            readiness.note(probe, passed=answers[-1].passed, now=time.monotonic() - start)
        answer = min(answers, key=lambda it: it.passed, default=answer)  # one that failed, if any did
        if readiness.ready:
            logger.info("%s: ready after %.1f s (%s)", replica.name, elapsed, answer.detail)
            return
        if answer.detail != told and elapsed > 1:
            told = answer.detail
            logger.info("%s: waiting for %s", replica.name, answer.detail)
        abandoned.wait(min(readiness.wait(time.monotonic() - start), LOOK_INTERVAL))
    if abandoned.is_set():
        raise ReplicaNotReadyError(f"{replica.name}: given up before it was ready")
    raise ReplicaNotReadyError(environment.hide(_never_ready(machine, replica, answer, timeout)))


@task(
    name="remove-replica",
    task_run_name="remove-replica {replica.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=may_help,
)
def remove_replica(instance: Instance, replica: Replica, grace: float) -> None:
    """Stop a replica with SIGTERM, then SIGKILL, and remove every trace of it.

    Args:
        instance: Where it runs.
        replica: The replica.
        grace: Seconds between the signals.
    """
    runtime = connections.runtime(replica.runtime)
    try:
        runtime.remove(connections.machine(instance), replica, grace)
    except HostUnreachableError as error:
        get_run_logger().warning("%s is left for reconcile-services: %s", replica.name, error)
        return
    get_run_logger().info("%s: removed", replica.name)


@task(
    name="terminate-instance",
    task_run_name="terminate-instance {instance.name}",
    cache_policy=NO_CACHE,
    retries=5,
    retry_delay_seconds=[2, 5, 10, 20, 40],
    retry_condition_fn=may_help,
)
def terminate_instance(instance: Instance) -> None:
    """Give an instance back, and see that it is gone.

    Args:
        instance: The machine.
    """
    connections.backends()[instance.backend].terminate(instance)
    get_run_logger().info("%s: terminated", instance.name)


def _crashing(status: ReplicaStatus) -> bool:
    return status.state == "restarting"


def _ended(machine: Machine, replica: Replica, status: ReplicaStatus) -> str:
    if status.out_of_memory:
        how = "it ran out of memory: raise resources.memory"
    elif status.state == "gone":
        how = "it was removed by somebody else"
    elif status.exit_code is not None and status.exit_code < 0:
        how = f"it was ended by signal {-status.exit_code}"
    else:
        how = f"it exited with code {status.exit_code}"
    return f"{replica.name}: {how} before it was ready; {_last_words(machine, replica)}"


def _never_ready(machine: Machine, replica: Replica, answer: Answer, timeout: float) -> str:
    hint = ""
    runtime = connections.runtime(replica.runtime)
    if isinstance(runtime, ProcessRuntime):
        others = [port for port in runtime.listening_ports(replica) if port != replica.port]
        if others:
            heard = ", ".join(map(str, others))
            hint = (
                f" (it listens on {heard}; a process must listen on $PORT, so that two revisions can overlap)"
            )
    words = _last_words(machine, replica)
    return f"{replica.name}: not ready within {timeout:.0f} s: {answer.detail}{hint}; {words}"


def _last_words(machine: Machine, replica: Replica) -> str:
    lines: list[str] = []
    with contextlib.suppress(HostError):
        lines = list(connections.runtime(replica.runtime).logs(machine, replica, tail=LOG_LINES))
    lines = [line.strip() for line in lines if line.strip()]
    return "its last lines: " + " | ".join(lines) if lines else "it wrote nothing"
