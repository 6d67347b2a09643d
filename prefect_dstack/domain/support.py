"""Which keys are acted on where: what loads but would be ignored is refused before anything is created."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath

from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.errors import UnsupportedKeyError

__all__ = ["check_support", "unsupported_keys"]

LATER = "is not acted on yet; remove it"

# Keys of a service that load, so that dstack's files can be read, and on which nothing acts.
NEVER = {
    "artifacts": "is a part of older versions of dstack; mount a directory with 'volumes' instead",
    "build": "is a part of older versions of dstack; build an image yourself and name it in 'image'",
    "cache": "is a part of older versions of dstack; mount a directory with 'volumes' instead",
    "creation_policy": LATER,
    "docker": "would need the Docker socket in the container, which is never given away; remove it",
    "dstack": "needs a dstack server, and there is none; remove it",
    "home_dir": "is a part of older versions of dstack; set HOME under 'env' instead",
    "instance_name": "is a part of older versions of dstack; name a fleet in 'fleets' instead",
    "instances": "is not acted on yet; name a fleet in 'fleets' instead",
    "nvcc": "needs dstack's own images; name an image with CUDA in 'image' instead",
    "pool_name": "is a part of older versions of dstack; name a fleet in 'fleets' instead",
    "priority": "is not acted on yet; use the priorities of Prefect's work queues instead",
    "python": "needs dstack's own images; name an image such as python:3.12 in 'image' instead",
    "repos": "is not acted on yet; use 'files', or clone in 'commands'",
    "reservation": LATER,
    "retry": "is not acted on: tasks are tried again and replicas restarted in any case; remove it",
    "retry_policy": "is not acted on: tasks are tried again and replicas restarted in any case; remove it",
    "router": LATER,
    "scaling": "is not acted on yet; give 'replicas' one number",
    "schedule": "belongs to the Prefect deployment; give that a schedule instead",
    "setup": "is a part of older versions of dstack; put its commands first in 'commands'",
    "single_branch": "is for 'repos', which are not acted on yet; remove it",
    "startup_order": "is for tasks of several nodes; remove it",
    "stop_criteria": "is for tasks of several nodes; remove it",
    "termination_idle_time": "is a part of older versions of dstack; remove it",
    "termination_policy": "is a part of older versions of dstack; remove it",
    "utilization_policy": LATER,
    "backend_options": LATER,
}

SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")

NEEDS_IMAGE = {
    "entrypoint": "needs an 'image'; without one, put the program into 'commands'",
    "files": "needs an 'image'; without one, the commands run in the configuration's directory",
    "privileged": "needs an 'image'; without one, the commands run as you",
    "registry_auth": "needs an 'image'",
    "tags": "needs an 'image': processes carry no tags",
    "user": "needs an 'image'; without one, the commands run as you",
    "volumes": "needs an 'image'; without one, the commands see this machine's own directories",
}


def check_support(configuration: ServiceConfiguration) -> None:
    """Refuse a service of which anything would be ignored.

    Args:
        configuration: The service.

    Raises:
        UnsupportedKeyError: For the first such key.
    """
    for key, reason in unsupported_keys(configuration):
        raise UnsupportedKeyError(
            reason, source=configuration.source_name, line=configuration.line_of(key), key=key
        )


def unsupported_keys(configuration: ServiceConfiguration) -> Iterator[tuple[str, str]]:
    """Find what would be ignored.

    Args:
        configuration: The service.

    Yields:
        Dotted keys, each with the reason and what to do.
    """
    written = {key for key in configuration.model_fields_set if _says_something(configuration, key)}
    for key in sorted(written):
        if key in NEVER:
            yield key, NEVER[key]
        if key in NEEDS_IMAGE and configuration.image is None:
            yield key, NEEDS_IMAGE[key]
    yield from _of_values(configuration)
    yield from _of_processes(configuration) if configuration.image is None else _of_containers(configuration)


def _of_values(configuration: ServiceConfiguration) -> Iterator[tuple[str, str]]:
    if configuration.group_names:
        yield "replicas", "groups of replicas are not acted on yet; give one number"
    elif not configuration.replica_range.fixed:
        yield "replicas", "a range needs autoscaling, which is not there yet; give one number"
    for key in ("max_duration", "idle_duration"):
        if getattr(configuration, key) not in (None, "off"):
            yield key, LATER
    if configuration.model is not None and configuration.model.format != "openai":
        yield "model.format", "only openai is served; use an application that speaks it"
    if configuration.gateway is False:
        yield "gateway", "a service without a gateway is not acted on yet; remove it"


def _of_processes(configuration: ServiceConfiguration) -> Iterator[tuple[str, str]]:
    if configuration.resources.shm_size is not None:
        yield "resources.shm_size", "needs an 'image'"
    elsewhere = [name for name in configuration.backends or () if name != "local"]
    if elsewhere or configuration.fleets:
        key = "backends" if elsewhere else "fleets"
        yield key, "needs an 'image': only this machine runs commands without one"


def _of_containers(configuration: ServiceConfiguration) -> Iterator[tuple[str, str]]:
    if configuration.working_dir is not None and not configuration.working_dir.startswith("/"):
        yield "working_dir", "must be an absolute path in the container"
    if configuration.entrypoint and configuration.shell:
        yield "shell", "has no effect beside 'entrypoint'; remove one of them"
    for number, volume in enumerate(configuration.volumes):
        if not hasattr(volume, "instance_path"):
            yield (
                f"volumes.{number}",
                "network volumes are not acted on yet; mount /a/directory:/in/the/container",
            )
        elif _holds_socket(volume.instance_path):
            yield (
                f"volumes.{number}",
                "the Docker socket is never given to a container, nor a directory that holds it; remove it",
            )


def _holds_socket(path: str) -> bool:
    # Two slashes at the start are not one to `normpath`.
    mounted = PurePosixPath(posixpath.normpath("/" + path.lstrip("/")))
    return any(PurePosixPath(socket).is_relative_to(mounted) for socket in SOCKETS)


def _says_something(configuration: ServiceConfiguration, key: str) -> bool:
    return getattr(configuration, key) not in (None, (), [], {}, False)
