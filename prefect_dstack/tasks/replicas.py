"""Tasks on replicas and their machines: provision, launch, wait, remove, terminate."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from prefect_dstack.backends.base import Instance, Offer
from prefect_dstack.controller import operations, routers
from prefect_dstack.controller.goal import ReplicaTemplate
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.domain.workload import Requirements
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.runtimes.base import Launch, Replica
from prefect_dstack.tasks.retries import is_provisioning_retryable, is_retryable

__all__ = [
    "launch_replica",
    "provision_instance",
    "remove_replica",
    "tell_router",
    "terminate_instance",
    "wait_until_ready",
]


@task(
    name="provision-instance",
    task_run_name="provision-instance {stamp.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_provisioning_retryable,
)
def provision_instance(
    infrastructure: Infrastructure, offers: Sequence[Offer], stamp: Stamp, requirements: Requirements
) -> Instance:
    """Get a machine for a replica."""
    return operations.provision_instance(infrastructure, offers, stamp, requirements, get_run_logger())


@task(
    name="launch-replica",
    task_run_name="launch-replica {launch.stamp.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=is_retryable,
)
def launch_replica(infrastructure: Infrastructure, instance: Instance, launch: Launch) -> Replica:
    """Start a replica on an instance."""
    return operations.launch_replica(infrastructure, instance, launch, get_run_logger())


@task(name="wait-until-ready", task_run_name="wait-until-ready {found.replica.name}", cache_policy=NO_CACHE)
def wait_until_ready(
    infrastructure: Infrastructure,
    found: FoundReplica,
    template: ReplicaTemplate,
    abandoned: threading.Event,
) -> None:
    """Wait until a replica has passed its probes."""
    operations.wait_until_ready(
        infrastructure,
        found,
        template.probes,
        template.spec.environment,
        template.ready_timeout,
        abandoned,
        get_run_logger(),
    )


@task(
    name="tell-router",
    task_run_name="tell-router {router.replica.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=is_retryable,
)
def tell_router(
    infrastructure: Infrastructure, router: FoundReplica, workers: Sequence[FoundReplica]
) -> None:
    """Make the workers of a router those that there are."""
    logger = get_run_logger()
    for line in routers.tell_router(infrastructure, router, workers):
        logger.info("%s: %s", router.replica.name, line)


@task(
    name="remove-replica",
    task_run_name="remove-replica {found.replica.name}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 5],
    retry_condition_fn=is_retryable,
)
def remove_replica(infrastructure: Infrastructure, found: FoundReplica, grace: float) -> None:
    """Stop a replica and remove every trace of it."""
    operations.remove_replica(infrastructure, found, grace, get_run_logger())


@task(
    name="terminate-instance",
    task_run_name="terminate-instance {instance.name}",
    cache_policy=NO_CACHE,
    retries=5,
    retry_delay_seconds=[2, 5, 10, 20, 40],
    retry_condition_fn=is_retryable,
)
def terminate_instance(infrastructure: Infrastructure, instance: Instance) -> None:
    """Release an instance."""
    operations.terminate_instance(infrastructure, instance, get_run_logger())
