"""Which keys are acted on where: what loads but would be ignored is refused before anything is created.

To act on a key, delete its line from the tables here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from prefect_dstack.configurations import (
    Configuration,
    DevEnvironmentConfiguration,
    FleetConfiguration,
    GatewayConfiguration,
    NodeGroup,
    ReplicaGroup,
    Resources,
    Router,
    ServiceConfiguration,
    TaskConfiguration,
    VolumeConfiguration,
    group_key,
    node_references,
    private_references,
)
from prefect_dstack.domain import fleet_support
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.domain.groups import group_configurations
from prefect_dstack.domain.retrying import capacity_timeout
from prefect_dstack.errors import ConfigurationError, UnsupportedKeyError

__all__ = ["check_runnable", "check_support", "unsupported_keys"]

Run = ServiceConfiguration | TaskConfiguration | DevEnvironmentConfiguration

LATER = "is not acted on yet; remove it"
OLDER = "is a part of older versions of dstack"

# Keys that load, so that dstack's files can be read, and on which nothing acts.
OF_RUNS = {
    "artifacts": f"{OLDER}; mount a directory with 'volumes' instead",
    "backend_options": LATER,
    "build": f"{OLDER}; build an image yourself and name it in 'image'",
    "cache": f"{OLDER}; mount a directory with 'volumes' instead",
    "creation_policy": LATER,
    "dstack": "needs a dstack server, and there is none; remove it",
    "home_dir": f"{OLDER}; set HOME under 'env' instead",
    "idle_duration": LATER,
    "instance_name": f"{OLDER}; name a fleet in 'fleets' instead",
    "pool_name": f"{OLDER}; name a fleet in 'fleets' instead",
    "reservation": LATER,
    "setup": f"{OLDER}; put its commands first in 'commands'",
    "single_branch": "has no effect: a repository is brought along without its history; remove it",
    "termination_idle_time": f"{OLDER}; remove it",
    "termination_policy": f"{OLDER}; remove it",
}
OF_SERVICES = {
    "max_duration": LATER,
    "priority": "is for tasks and dev environments that wait for a machine; remove it",
    "retry_policy": f"{OLDER}, and is not acted on yet; write 'retry' instead",
    "router": LATER,
    "startup_order": "is for tasks of several nodes; remove it",
    "stop_criteria": "is for tasks of several nodes; remove it",
    "utilization_policy": "is for tasks and dev environments; a service that nobody asks ends with "
    "'replicas: 0..1' and 'scaling'",
}
OF_TASKS = {
    "retry_policy": f"{OLDER}, and is not acted on yet; write 'retry' instead",
}
OF_DEV_ENVIRONMENTS = {
    "retry_policy": f"{OLDER}, and is not acted on yet; write 'retry' instead",
    "startup_order": "is for tasks of several nodes; remove it",
    "stop_criteria": "is for tasks of several nodes; remove it",
    "version": "is not acted on: an editor brings its own version when it connects; remove it",
}
OF_GATEWAYS = {
    "load_balancer": "is not acted on: a gateway answers at its own address; remove it",
    "replicas": "a gateway on several machines is not acted on yet; use one",
    "router": LATER,
}
OF_VOLUMES = {
    "type": "volumes of a cloud are not created yet; mount a directory with '/on/instance:/in/container'",
}
NEVER: dict[str, dict[str, str]] = {
    "service": OF_RUNS | OF_SERVICES,
    "task": OF_RUNS | OF_TASKS,
    "dev-environment": OF_RUNS | OF_DEV_ENVIRONMENTS,
    "gateway": OF_GATEWAYS,
    "fleet": fleet_support.NEVER,
    "volume": OF_VOLUMES,
}
"""What is refused of each kind of configuration, and why."""

CERTIFICATES = {
    "acm": "is not acted on: a certificate of ACM works with AWS's own load balancers only; use type: acme",
    "gcp-cm": "is not acted on: it works with Google's own load balancers only; use type: acme",
}

SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")

ON_THIS_MACHINE = "needs a container: name an 'image', a fleet, or a backend other than local"
NEEDS_CONTAINER = {
    "docker": f"{ON_THIS_MACHINE}; without one, the commands see this machine's own engine",
    "entrypoint": f"{ON_THIS_MACHINE}; or put the program into 'commands'",
    "nvcc": f"{ON_THIS_MACHINE}; without one, the commands see this machine's own compilers",
    "privileged": f"{ON_THIS_MACHINE}; without one, the commands run as you",
    "tags": f"{ON_THIS_MACHINE}; processes carry no tags",
    "user": f"{ON_THIS_MACHINE}; without one, the commands run as you",
    "volumes": f"{ON_THIS_MACHINE}; without one, the commands see this machine's own directories",
}


def check_support(configuration: Configuration) -> None:
    """Refuse a configuration of which anything would be ignored.

    Args:
        configuration: A configuration of any kind.

    Raises:
        UnsupportedKeyError: For the first such key.
    """
    for key, reason in unsupported_keys(configuration):
        raise UnsupportedKeyError(
            reason, source=configuration.source_name, line=configuration.line_of(key), key=key
        )


def check_runnable(configuration: Run, remedy: str) -> None:
    """Refuse a configuration that has no name, or of which anything would be ignored.

    Args:
        configuration: A service, a task or a development environment.
        remedy: How else to name it, for the message.

    Raises:
        ConfigurationError: If it has no name.
        UnsupportedKeyError: For the first such key.
    """
    if configuration.name is None:
        raise ConfigurationError(
            f"is missing; add 'name: my-{configuration.type}', or {remedy}",
            source=configuration.source_name,
            key="name",
        )
    check_support(configuration)


def unsupported_keys(configuration: Configuration) -> Iterator[tuple[str, str]]:
    """Find what would be ignored.

    Args:
        configuration: A configuration of any kind.

    Yields:
        Dotted keys, each with the reason and what to do.
    """
    never = NEVER[configuration.type]
    for key in sorted(never):
        if key == "type" or _says_something(configuration, key):
            yield key, never[key]
    if isinstance(configuration, GatewayConfiguration):
        certificate = configuration.effective_certificate
        if certificate is not None and certificate.type in CERTIFICATES:
            yield "certificate.type", CERTIFICATES[certificate.type]
    if isinstance(configuration, (FleetConfiguration, GatewayConfiguration, VolumeConfiguration)):
        return
    yield from _of_runs(configuration)


def _of_runs(configuration: Run) -> Iterator[tuple[str, str]]:
    yield from _of_values(configuration)
    if isinstance(configuration, ServiceConfiguration):
        yield from _of_services(configuration)
    if isinstance(configuration, TaskConfiguration):
        yield from _of_groups(configuration, "groups", configuration.groups or ())
    yield from _of_repositories(configuration)
    runs: Sequence[Run] = (configuration,)
    if isinstance(configuration, ServiceConfiguration):
        runs = group_configurations(configuration)
    if _says_something(configuration, "registry_auth") and all(run.image is None for run in runs):
        yield "registry_auth", "is for a private 'image', and none is named"
    if isinstance(configuration, ServiceConfiguration) and configuration.replica_groups:
        yield from _of_what_groups_run(configuration)
    else:
        yield from _of_what_runs(configuration)


def _of_what_runs(configuration: Run) -> Iterator[tuple[str, str]]:
    if runtime_of(configuration) == "process":
        yield from _of_processes(configuration)
    else:
        yield from _of_containers(configuration)


def _of_what_groups_run(configuration: ServiceConfiguration) -> Iterator[tuple[str, str]]:
    """Yield what is refused of the groups of a service, each with what the service says for all of them."""
    groups, key = configuration.replica_groups, group_key(configuration)
    runs = group_configurations(configuration)
    if len({runtime_of(run) for run in runs}) > 1:
        yield key, "some run in containers, and some as processes: give each of them an 'image', or none"
        return
    said = set[str]()
    for number, (group, run) in enumerate(zip(groups, runs, strict=True)):
        for found, reason in _of_what_runs(run):
            own = found.partition(".")[0] in group.model_fields_set
            place = f"{key}.{number}.{found}" if own else found
            if place not in said:
                said.add(place)
                yield place, reason


def _of_values(configuration: Run) -> Iterator[tuple[str, str]]:
    yield from _of_resources(configuration.resources, "resources")
    if configuration.utilization_policy is not None and not _has_gpu(configuration):
        yield "utilization_policy", "is for runs with a GPU; ask for one in 'resources', or remove it"
    # Replicas come and go, and none waits for another.
    if not isinstance(configuration, TaskConfiguration):
        for key, reference in node_references(configuration):
            yield key, f"{reference.path} is for the nodes of a task; remove it"


def _has_gpu(configuration: Run) -> bool:
    """Return whether a run asks for a GPU; what a service asks for does not matter here."""
    if isinstance(configuration, ServiceConfiguration):
        return True
    groups = configuration.groups or () if isinstance(configuration, TaskConfiguration) else ()
    wanted = [configuration.resources, *(group.resources for group in groups)]
    return any(resources.gpu is not None for resources in wanted)


def _of_resources(resources: Resources, key: str) -> Iterator[tuple[str, str]]:
    gpu = resources.gpu
    if gpu is not None and gpu.vendor not in (None, "nvidia"):
        yield f"{key}.gpu.vendor", "only the GPUs of nvidia are found; remove it"


def _of_groups(
    configuration: Run, key: str, groups: Sequence[ReplicaGroup | NodeGroup]
) -> Iterator[tuple[str, str]]:
    never = NEVER[configuration.type]
    for number, group in enumerate(groups):
        for name in sorted((never.keys() & type(group).model_fields.keys()) - {"router"}):
            if _says_something(group, name):
                yield f"{key}.{number}.{name}", never[name]
        yield from _of_resources(group.resources, f"{key}.{number}.resources")


def _of_services(configuration: ServiceConfiguration) -> Iterator[tuple[str, str]]:
    key = group_key(configuration)
    yield from _of_groups(configuration, key, configuration.replica_groups)
    for number, group in enumerate(configuration.replica_groups):
        if group.scaling is not None and not group.range.min:
            count = "count" if group.replicas is None else "replicas"
            reason = f"a group that scales keeps at least one replica; write 1..{group.range.max}"
            yield f"{key}.{number}.{count}", reason
        yield from _of_router(configuration, group.router, f"{key}.{number}.router")
    retry = configuration.retry
    if retry is not None and retry.duration is not None and not capacity_timeout(retry):
        yield "retry.duration", "is for no-capacity only: what ends is started again for as long as it takes"
    if configuration.model is not None and configuration.model.format != "openai":
        yield "model.format", "only openai is served; use an application that speaks it"


def _of_router(
    configuration: ServiceConfiguration, router: Router | None, key: str
) -> Iterator[tuple[str, str]]:
    if router is None:
        return
    if router.type not in ("sglang", "smg"):
        yield f"{key}.type", "is not told which replicas there are; only smg, or sglang, is"
    for name in ("pd_disaggregation", "policy"):
        if name in router.model_fields_set:
            yield f"{key}.{name}", "has no effect: say it in the commands that start the router"


def _of_repositories(configuration: Run) -> Iterator[tuple[str, str]]:
    for number, repository in enumerate(configuration.repos):
        for key in ("branch", "hash"):
            if repository.local_path is not None and getattr(repository, key):
                yield f"repos.{number}.{key}", "is for a repository with a 'url'; remove it"
        if runtime_of(configuration) == "docker" and ".." in PurePosixPath(repository.path).parts:
            yield f"repos.{number}.path", "must not have '..' in it"


def _of_processes(configuration: Run) -> Iterator[tuple[str, str]]:
    for key in sorted(NEEDS_CONTAINER):
        if _says_something(configuration, key):
            yield key, NEEDS_CONTAINER[key]
    if configuration.resources.shm_size is not None:
        yield "resources.shm_size", ON_THIS_MACHINE
    for name in _dotted_names(configuration):
        yield f"env.{name}", "a shell does not hand on a name with a dot"
    yield from _of_files_of_processes(configuration)


def _of_files_of_processes(configuration: Run) -> Iterator[tuple[str, str]]:
    brought = {f"repos.{number}": it.path for number, it in enumerate(configuration.repos)}
    brought |= {f"files.{number}": it.path for number, it in enumerate(configuration.files)}
    for key, path in brought.items():
        if path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
            reason = "must be relative and below the working directory where no container is used"
            yield f"{key}.path", f"{reason}; write 'local:path' to say where it goes"
    working_dir = configuration.working_dir or ""
    if brought and (working_dir.startswith(("/", "~")) or ".." in PurePosixPath(working_dir).parts):
        yield "working_dir", "must be below the files that are brought along; remove it, or use a container"


def _of_containers(configuration: Run) -> Iterator[tuple[str, str]]:
    if configuration.working_dir is not None and not configuration.working_dir.startswith("/"):
        yield "working_dir", "must be an absolute path in the container"
    if configuration.entrypoint:
        for key in ("docker", "python", "shell"):
            if getattr(configuration, key):
                yield key, "has no effect beside 'entrypoint'; remove one of them"
    yield from _of_dotted_names(configuration)
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


def _of_dotted_names(configuration: Run) -> Iterator[tuple[str, str]]:
    names = _dotted_names(configuration)
    hidden = [name for name, value in configuration.env.items() if value is None]
    hidden += [key.removeprefix("env.") for key, _ in private_references(configuration, "env")]
    commands = getattr(configuration, "commands", ()) and not configuration.entrypoint
    for name in names:
        if hidden:
            yield f"env.{name}", f"a shell does not hand on a name with a dot, and '{hidden[0]}' needs one"
        elif commands:
            yield (
                f"env.{name}",
                "a shell does not hand on a name with a dot; use 'entrypoint' instead of 'commands'",
            )


def _dotted_names(configuration: Run) -> list[str]:
    return [name for name in configuration.env if "." in name]


def _holds_socket(path: str) -> bool:
    # Two slashes at the start are not one to `normpath`.
    mounted = PurePosixPath(posixpath.normpath("/" + path.lstrip("/")))
    return any(PurePosixPath(socket).is_relative_to(mounted) for socket in SOCKETS)


def _says_something(said: Configuration | ReplicaGroup | NodeGroup, key: str) -> bool:
    if key not in said.model_fields_set:
        return False
    value = getattr(said, key)
    default = type(said).model_fields[key].get_default(call_default_factory=True)
    return value != default and value not in (None, (), [], {}, False, "off") and (key, value) != ("nodes", 1)
