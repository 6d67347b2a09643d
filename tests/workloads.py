"""What replicas are made of, from the keys that a user would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect_dstack.configurations import Environment, ServiceConfiguration, load_configuration
from prefect_dstack.domain.workload import Requirements, WorkloadSpec, requirements_of, workload_spec


def service_of(directory: Path | None = None, **keys: Any) -> ServiceConfiguration:
    """A service with these keys."""
    loaded = load_configuration({"type": "service", "port": 8000, **keys}, name="hello", directory=directory)
    assert isinstance(loaded, ServiceConfiguration)
    return loaded


def requirements(**keys: Any) -> Requirements:
    """What a service with these keys needs of a machine."""
    return requirements_of(service_of(**keys))


def spec_of(
    configuration: ServiceConfiguration, directory: Path, environment: Environment | None = None
) -> WorkloadSpec:
    """What a replica of a service runs."""
    return workload_spec(
        configuration,
        port=configuration.port.port,
        commands=configuration.commands,
        environment=environment or Environment(),
        directory=directory,
    )
