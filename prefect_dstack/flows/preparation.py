"""Everything that can be found out about a deployment before anything is created."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext

from prefect_dstack.backends.base import Offer
from prefect_dstack.configurations import (
    Configuration,
    Environment,
    RegistryCredentials,
    ServiceConfiguration,
    deployer_variables,
    load_configuration,
    resolve_environment,
    resolve_registry_auth,
)
from prefect_dstack.domain.record import Revision, ServiceRecord, now
from prefect_dstack.domain.revision import settings_digest, workload_digest, written
from prefect_dstack.domain.support import check_support
from prefect_dstack.errors import ConfigurationError, NoOfferError
from prefect_dstack.tasks import connections
from prefect_dstack.tasks.records import load_environment
from prefect_dstack.tasks.secrets import lookup

__all__ = [
    "Workload",
    "find_offers",
    "load_service",
    "next_revision",
    "recorded_workload",
    "this_user",
    "workload",
]


@dataclass(frozen=True)
class Workload:
    """What replicas of one revision are made of; `deployer` comes from the environment of who deploys."""

    configuration: ServiceConfiguration
    environment: Environment
    registry: RegistryCredentials | None
    directory: Path
    deployer: Mapping[str, str] = field(default_factory=dict, repr=False)


def load_service(
    source: str | Path | Mapping[str, Any] | Configuration,
    *,
    name: str | None = None,
    args: Sequence[str] = (),
    profile: str | None = None,
) -> ServiceConfiguration:
    """Load a service, and refuse what would be ignored.

    Args:
        source: A path, YAML text, a mapping or a model.
        name: Overrides the name of the service.
        args: What `${{ run.args }}` stands for.
        profile: The profile to use.

    Returns:
        The service; it has a name.

    Raises:
        ConfigurationError: If it cannot be accepted.
    """
    configuration = load_configuration(
        # The parameters of a deployment may come from prefect.yaml, which Prefect fills in.
        source,
        name=name,
        args=args,
        profile=profile,
        templated=_is_of_deployment(),
    )
    if not isinstance(configuration, ServiceConfiguration):
        raise ConfigurationError(
            f"is a {configuration.type}, and this takes a service",
            source=configuration.source_name,
            line=configuration.line_of("type"),
            key="type",
        )
    if configuration.name is None:
        raise ConfigurationError(
            "is missing; add 'name: my-service', or pass a name", source=configuration.source_name, key="name"
        )
    check_support(configuration)
    return configuration


def _is_of_deployment() -> bool:
    # Of the flow run itself: a flow above it that a deployment runs passes what its program has made.
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    return run is not None and run.deployment_id is not None


def workload(configuration: ServiceConfiguration, environ: Mapping[str, str] | None = None) -> Workload:
    """Fill in the secrets of a service.

    Args:
        configuration: The service.
        environ: Where `env` names without a value are looked up; default: this process's environment.

    Returns:
        All that its replicas need.

    Raises:
        ConfigurationError: If a secret does not exist, or the environment lacks a value.
    """
    environ = os.environ if environ is None else environ
    return Workload(
        configuration=configuration,
        environment=resolve_environment(configuration, lookup, environ),
        registry=resolve_registry_auth(configuration, lookup, environ),
        directory=configuration.directory,
        deployer={name: environ[name] for name in deployer_variables(configuration) if name in environ},
    )


def recorded_workload(record: ServiceRecord, revision: Revision) -> Workload:
    """Restore what the replicas of a recorded revision are made of.

    Args:
        record: Of the service.
        revision: One of its revisions.

    Returns:
        All that its replicas need; secrets as they are now.
    """
    loaded = load_configuration(revision.configuration, name=record.name, directory=revision.directory)
    if not isinstance(loaded, ServiceConfiguration):
        raise ConfigurationError(f"{record.name}@{revision.number}: its record is not that of a service")
    return workload(loaded, {**os.environ, **load_environment(record.name, revision.number)})


def next_revision(record: ServiceRecord, work: Workload, flow_run: str) -> Revision:
    """Make the revision that a deployment would put on the air.

    Args:
        record: Of the service.
        work: What it is made of.
        flow_run: The id of the flow run.

    Returns:
        A revision with a number of its own.
    """
    configuration = work.configuration
    number = record.last_revision + 1
    return Revision(
        number=number,
        configuration=written(configuration),
        directory=str(work.directory),
        workload=workload_digest(
            configuration, work.environment, work.registry, str(work.directory), record.salt
        ),
        settings=settings_digest(configuration, record.salt),
        created_at=now(),
        created_by=this_user(),
        flow_run=flow_run,
        replicas_of=number,
    )


def this_user() -> str:
    """Tell who runs this, for the history of a service.

    Returns:
        User and machine.
    """
    return f"{getpass.getuser()}@{platform.node()}"


def find_offers(configuration: ServiceConfiguration) -> list[Offer]:
    """Ask the backends what could be had for one replica.

    Args:
        configuration: The service.

    Returns:
        Offers, the best first.

    Raises:
        NoOfferError: If there is none; says why, backend by backend.
    """
    known = connections.backends()
    if configuration.image is None:
        names = ["local"]
    elif configuration.backends:
        names = list(configuration.backends)
    elif configuration.fleets:
        names = ["ssh"]
    else:
        names = [name for name in known if name != "local"] or ["local"]
    offers: list[Offer] = []
    reasons: list[str] = []
    for name in names:
        if name not in known:
            reasons.append(f"{name}: not configured; configured are {', '.join(known)}")
            continue
        try:
            offers += known[name].offers(configuration)
        except NoOfferError as error:
            reasons.append(str(error))
    if not offers:
        raise NoOfferError(f"{configuration.name}: no machine has what it asks for: {'; '.join(reasons)}")
    return sorted(offers, key=lambda offer: (offer.price is None, offer.price or 0.0))
