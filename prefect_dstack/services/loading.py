"""What runs, read from what a caller gives, and refused if anything of it would be ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prefect_dstack.configurations import (
    Configuration,
    RunConfiguration,
    ServiceConfiguration,
    load_configuration,
)
from prefect_dstack.domain.support import check_runnable
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.store.variables import lookup

__all__ = ["load_of_kind", "load_service"]

Kind = TypeVar("Kind", bound=RunConfiguration)
Source = str | Path | Mapping[str, Any] | Configuration


def load_of_kind(
    kinds: type[Kind] | tuple[type[Kind], ...],
    source: Source,
    *,
    name: str | None = None,
    args: Sequence[str] | None = None,
    profile: str | None = None,
    templated: bool = False,
    directory: str | Path | None = None,
) -> Kind:
    """Load a configuration of a kind, and refuse what would be ignored.

    Args:
        kinds: The model of the kind, or of each kind that will do.
        source: A path, YAML text, a mapping or a model.
        name: Overrides the name of the configuration.
        args: What `${{ run.args }}` stands for.
        profile: The profile whose settings are used where the configuration has none.
        templated: Whether it is a parameter of a deployment, which Prefect may have filled in.
        directory: What relative paths start from, instead of the file's directory; of a mapping or YAML text,
            instead of the current one.

    Returns:
        The configuration; it has a name.

    Raises:
        ConfigurationError: If it cannot be accepted.
    """
    configuration = load_configuration(
        source,
        name=name,
        args=args or (),
        profile=profile,
        templated=templated,
        variables=lookup,
        directory=directory,
    )
    if not isinstance(configuration, kinds):
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        known = " or ".join(f"a {kind.model_fields['type'].default}" for kind in wanted)
        raise ConfigurationError(
            f"is a {configuration.type}, and this takes {known}",
            source=configuration.source_name,
            line=configuration.line_of("type"),
            key="type",
        )
    check_runnable(configuration, "pass a name")
    return configuration


def load_service(source: Source, **options: Any) -> ServiceConfiguration:
    """Load a service, and refuse what would be ignored; see `load_of_kind`.

    Args:
        source: A path, YAML text, a mapping or a model.
        options: Those of `load_of_kind`.

    Raises:
        ConfigurationError: If it cannot be accepted.
    """
    return load_of_kind(ServiceConfiguration, source, **options)
