"""Which image the replicas of a service run, and which one its tag stands for now."""

from __future__ import annotations

from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.runtimes.docker import docker_host
from prefect_dstack.runtimes.images import image_digests
from prefect_dstack.services.preparation import PreparedService

__all__ = ["running_image"]


def running_image(
    record: ServiceRecord, prepared: PreparedService, infrastructure: Infrastructure
) -> tuple[str, str]:
    """Return which image serves, and which one new replicas would run.

    Args:
        record: The record of the service, which serves.
        prepared: The service.
        infrastructure: Where its replicas are looked for.

    Returns:
        Two digests, the first of which differs from the second if any replica runs another image; empty
        if no container serves.
    """
    active, images = record.active_revision, prepared.images
    if active is None or not any(images):
        return "", ""
    newest = ""
    for found in infrastructure.observe(record.name, ["docker"]).found:
        stamp = found.replica.stamp
        image = images[stamp.replica % len(images)]
        if stamp.revision == active.replicas_of and image is not None:
            engine = docker_host(infrastructure.machine(found.instance)).docker()
            was, newest = image_digests(engine, image, prepared.registry, found.replica.id)
            if was != newest:
                return was, newest
    return newest, newest
