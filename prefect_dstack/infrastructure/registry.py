"""The backends that are installed: ours, and those of other packages.

A package adds a backend by an entry point in the group `prefect_dstack.backends`. Its name is the backend's,
and it leads to a function that takes a `BackendContext` and returns the backend, or None if it is not
configured:

```toml
[project.entry-points."prefect_dstack.backends"]
mycloud = "mycloud.prefect_dstack:backend"
```
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from prefect_dstack.backends.base import Backend
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.infrastructure.sources import BackendContext

__all__ = ["GROUP", "BackendFactory", "configured_backends"]

GROUP = "prefect_dstack.backends"

BackendFactory = Callable[[BackendContext], Backend | None]


def configured_backends(context: BackendContext) -> Mapping[str, Backend]:
    """Create every installed backend that is configured.

    Args:
        context: What their factories may use.

    Returns:
        Backends by name, in the order of their names.

    Raises:
        ConfigurationError: If the package of a backend cannot be imported.
    """
    found: dict[str, Backend] = {}
    for name, factory in _factories().items():
        backend = factory(context)
        if backend is not None:
            found[name] = backend
    return found


@functools.cache
def _factories() -> Mapping[str, BackendFactory]:
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return {point.name: _load(point) for point in points}


def _load(point: EntryPoint) -> BackendFactory:
    try:
        return cast("BackendFactory", point.load())
    except (ImportError, AttributeError) as error:
        package = point.dist.name if point.dist is not None else "a package"
        raise ConfigurationError(
            f"the backend '{point.name}' of {package} cannot be imported: {error}; "
            "update or remove the package"
        ) from error
