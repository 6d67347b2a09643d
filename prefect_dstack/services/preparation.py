"""Everything that can be found out about a deployment before anything is created."""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect_dstack.bundles import Bundle
from prefect_dstack.configurations import (
    CountRange,
    Environment,
    Probe,
    RegistryCredentials,
    ServiceConfiguration,
    deployer_variables,
    load_configuration,
    resolve_environment,
    resolve_probes,
    resolve_registry_auth,
)
from prefect_dstack.configurations.names import parse_model_asset
from prefect_dstack.controller.goal import DEFAULT_STOP_DURATION, Goal, ReplicaTemplate
from prefect_dstack.domain.groups import group_configurations, group_names, router_group
from prefect_dstack.domain.record import DesiredReplicas, Revision, ServiceRecord, now
from prefect_dstack.domain.revision import settings_digest, value_digests, workload_digest, written
from prefect_dstack.domain.rollout import Limits
from prefect_dstack.domain.workload import WorkloadSpec, workload_spec
from prefect_dstack.errors import ConfigurationError, UserError
from prefect_dstack.gateways.state import Route
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.sources import Sources
from prefect_dstack.services.bundles import bundle_of
from prefect_dstack.services.images import default_image
from prefect_dstack.services.model_versions import model_version
from prefect_dstack.store.records import load_environment

__all__ = [
    "PreparedService",
    "check_annotations",
    "desired_replicas",
    "drain_timeout",
    "goal_for",
    "next_revision",
    "prepare",
    "recorded",
    "scaled_groups",
    "this_user",
    "with_files",
    "with_model_asset",
]


@dataclass(frozen=True)
class PreparedService:
    """A service's configuration with the values of its secrets.

    Attributes:
        configuration: The service.
        environment: The variables of its replicas.
        registry: Credentials for its image.
        directory: What the relative paths of its replicas start from.
        bundle: The digest of the copy of its files; empty if it brings none along.
        files: Those files where they are now; None if it brings none along, or they are in the copy already.
        model_version: What tells the content of its model from any other; empty if that is not known.
        annotations: What its deployer writes on it.
        pull: Whether its image is pulled even where it is there.
        own_environment: The values that came from the deployer's environment, in clear.
        probes: The probes with their secrets; None: the configuration has none.
    """

    configuration: ServiceConfiguration
    environment: Environment
    registry: RegistryCredentials | None
    directory: Path
    bundle: str = ""
    files: Bundle | None = None
    model_version: str = ""
    annotations: Mapping[str, Any] = field(default_factory=dict)
    pull: bool = False
    own_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    probes: tuple[Probe, ...] | None = None

    @property
    def routed(self) -> ServiceConfiguration:
        """The configuration as a gateway needs it, with the secrets of its probes."""
        return self.configuration.model_copy(update={"probes": self.probes})

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of its replicas; one empty name where there are none."""
        return group_names(self.configuration)

    @property
    def images(self) -> tuple[str | None, ...]:
        """The image that the configuration names for each group; None: none."""
        return tuple(configuration.image for configuration in group_configurations(self.configuration))

    @property
    def specs(self) -> tuple[WorkloadSpec, ...]:
        """What one replica of each group runs."""
        return tuple(
            workload_spec(
                configuration,
                port=configuration.port.port,
                commands=configuration.commands,
                environment=self.environment,
                registry=self.registry,
                default_image=default_image(configuration),
                directory=self.directory,
                bundle=self.bundle,
                interconnected=router_group(self.configuration) is not None,
            ).model_copy(update={"pull": self.pull})
            for configuration in group_configurations(self.configuration)
        )


def prepare(
    configuration: ServiceConfiguration, sources: Sources, environ: Mapping[str, str] | None = None
) -> PreparedService:
    """Fill in the secrets of a service.

    Args:
        configuration: The service.
        sources: Where its secrets are looked up.
        environ: Where `env` names without a value are looked up; default: this process's environment.

    Returns:
        All that its replicas need.

    Raises:
        ConfigurationError: If a secret does not exist, or the environment lacks a value.
    """
    environ = os.environ if environ is None else environ
    return PreparedService(
        configuration=configuration,
        environment=resolve_environment(configuration, sources.secret, environ),
        registry=resolve_registry_auth(configuration, sources.secret, environ),
        probes=resolve_probes(configuration, sources.secret, environ),
        directory=configuration.directory,
        own_environment={
            name: environ[name] for name in deployer_variables(configuration) if name in environ
        },
    )


def check_annotations(annotations: Mapping[str, Any]) -> None:
    """Refuse annotations that cannot be kept, before anything is created.

    Args:
        annotations: What a deployer writes on a revision.

    Raises:
        UserError: If they are not what JSON can hold.
    """
    try:
        json.dumps(annotations, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"annotations: must be texts, numbers and the like, as in JSON: {error}") from error


def with_model_asset(configuration: ServiceConfiguration, asset: str) -> ServiceConfiguration:
    """Return a service with another model.

    Args:
        configuration: The service.
        asset: Where the model is.

    Raises:
        ConfigurationError: If that is neither a URI nor a path.
    """
    try:
        return configuration.model_copy(update={"model_asset": parse_model_asset(asset)})
    except ValueError as error:
        raise ConfigurationError(str(error), key="model_asset") from error


def with_files(prepared: PreparedService, infrastructure: Infrastructure) -> PreparedService:
    """Return a prepared service with the files that it brings along, and the version of its model.

    Args:
        prepared: The service.
        infrastructure: Where copies of files are kept.

    Raises:
        ConfigurationError: If the files are too many or too large, or cannot be read.
        UserError: If its model is not there, or cannot be read.
    """
    files = bundle_of(prepared.configuration, infrastructure)
    return replace(
        prepared,
        files=files,
        bundle="" if files is None else files.digest,
        model_version=model_version(prepared.configuration, infrastructure),
    )


def recorded(record: ServiceRecord, revision: Revision, sources: Sources) -> PreparedService:
    """Restore what the replicas of a recorded revision are made of.

    Args:
        record: The record of the service.
        revision: One of its revisions.
        sources: Where its secrets are looked up.

    Returns:
        All that its replicas need; secrets as they are now.
    """
    loaded = load_configuration(revision.configuration, name=record.name, directory=revision.directory)
    if not isinstance(loaded, ServiceConfiguration):
        raise ConfigurationError(f"{record.name}@{revision.number}: its record is not that of a service")
    prepared = prepare(loaded, sources, {**os.environ, **load_environment(record.name, revision.number)})
    return replace(
        prepared,
        bundle=revision.bundle,
        model_version=revision.model_version,
        annotations=revision.annotations,
    )


def next_revision(record: ServiceRecord, prepared: PreparedService, flow_run: str) -> Revision:
    """Return the revision that a deployment would make the one that serves.

    Args:
        record: The record of the service.
        prepared: What it is made of.
        flow_run: The id of the flow run.

    Returns:
        A revision with a number of its own.
    """
    configuration, directory = prepared.configuration, str(prepared.directory)
    number = record.last_revision + 1
    return Revision(
        number=number,
        configuration=written(configuration),
        directory=directory,
        bundle=prepared.bundle,
        model_version=prepared.model_version,
        annotations=dict(prepared.annotations),
        workload=workload_digest(
            configuration,
            prepared.environment,
            prepared.registry,
            directory,
            record.salt,
            prepared.bundle,
            default_image=" ".join(
                image for image in map(default_image, group_configurations(configuration)) if image
            ),
            model_version=prepared.model_version,
        ),
        settings=settings_digest(configuration, record.salt),
        values=value_digests(prepared.environment, prepared.registry, record.salt),
        created_at=now(),
        created_by=this_user(),
        flow_run=flow_run,
        replicas_of=number,
    )


def desired_replicas(record: ServiceRecord, configuration: ServiceConfiguration) -> DesiredReplicas:
    """Return how many replicas a service is to have with a configuration.

    Args:
        record: The record of the service, with the number that it has had.
        configuration: The service.

    Returns:
        The number of the configuration, if it has one; else the number before, within the range. A number
        that somebody has pinned stays.
    """
    before, allowed = record.desired, configuration.replica_range
    if configuration.replica_groups:
        return _desired_groups(before, configuration)
    if before is not None and before.pinned and not before.groups:
        return before
    if before is not None and not allowed.fixed:
        number = _within(allowed, before.replicas)
    else:
        number = configuration.replica_count
    if before is not None and before.replicas == number and not before.groups:
        return before
    return DesiredReplicas(replicas=number, set_by="configuration", set_at=now())


def _within(allowed: CountRange, before: int | None) -> int:
    """Return how many replicas there are to be in a range; as many as before, if that fits."""
    if before is None or allowed.fixed:
        return allowed.min or 0
    return min(max(before, allowed.min or 0), allowed.max or before)


def _desired_groups(before: DesiredReplicas | None, configuration: ServiceConfiguration) -> DesiredReplicas:
    had = {} if before is None else before.groups
    ranges = (group.range for group in configuration.replica_groups)
    counts = {
        name: _within(allowed, had.get(name))
        for name, allowed in zip(configuration.group_names, ranges, strict=True)
    }
    if before is not None and before.pinned and before.groups.keys() == counts.keys():
        return before
    if before is not None and before.groups == counts:
        return before
    return DesiredReplicas(replicas=sum(counts.values()), groups=counts, set_by="configuration", set_at=now())


def scaled_groups(
    record: ServiceRecord, names: Sequence[str], replicas: int, group: str | None
) -> dict[str, int]:
    """Return how many replicas each group of a service is to have.

    Args:
        record: The record of the service, with the numbers that it has had.
        names: The names of its groups.
        replicas: How many the group is to have.
        group: Which; None: the service has no groups.

    Returns:
        The number of each group; none for a service without groups.

    Raises:
        UserError: If there is no such group, or it is not said which.
    """
    if tuple(names) == ("",):
        if group is not None:
            raise UserError(f"{record.name}: has no groups of replicas; scale it without naming one")
        return {}
    if group not in names:
        known = ", ".join(names)
        problem = "has groups of replicas" if group is None else f"has no group '{group}'"
        raise UserError(f"{record.name}: {problem}; name one of {known}: --group {names[0]}")
    before = {} if record.desired is None else record.desired.groups
    return {name: replicas if name == group else before.get(name, 0) for name in names}


def drain_timeout(configuration: ServiceConfiguration) -> float | None:
    """Return the drain timeout of a service in seconds; None: open requests get as long as they take.

    Args:
        configuration: The service.
    """
    if configuration.stop_duration == "off":
        return None
    return (
        DEFAULT_STOP_DURATION if configuration.stop_duration is None else float(configuration.stop_duration)
    )


def goal_for(
    record: ServiceRecord,
    revision: Revision,
    prepared: PreparedService,
    route: Route,
    numbers: tuple[int, ...],
) -> Goal:
    """Return the goal of a revision that is to serve.

    Args:
        record: The record of the service.
        revision: The revision.
        prepared: What it is made of.
        route: Its route.
        numbers: The numbers of the replicas that it is to have.
    """
    configuration, pending = prepared.configuration, record.pending()
    router = router_group(configuration)
    return Goal(
        service=record.name,
        revision=revision.replicas_of,
        numbers=numbers,
        limits=Limits.of(configuration.rollout, len(numbers)),
        templates=tuple(
            ReplicaTemplate(
                spec=spec,
                route=route,
                probes=prepared.probes or (),
                ready_timeout=configuration.rollout.timeout,
                direct=router in (None, group),
            )
            for spec, group in zip(prepared.specs, prepared.groups, strict=True)
        ),
        groups={**record.groups, revision.replicas_of: prepared.groups},
        routers=record.routers if router is None else {**record.routers, revision.replicas_of: router},
        stop_duration=drain_timeout(configuration),
        untouched=None if pending is None or pending.revision == revision.replicas_of else pending.revision,
    )


def this_user() -> str:
    """Return who runs this, for the history of a service: user and machine."""
    return f"{getpass.getuser()}@{platform.node()}"
