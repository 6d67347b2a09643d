"""A service that is there for as long as a program needs it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

from prefect_dstack.api import connected
from prefect_dstack.asynchronous import in_thread
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.record import Endpoint
from prefect_dstack.errors import ConflictError, NotFoundError
from prefect_dstack.flows.deploy import deploy_service
from prefect_dstack.flows.stop import stop_service
from prefect_dstack.services.loading import load_service
from prefect_dstack.store.records import find_record

__all__ = ["Service", "service"]


class Service:
    """A service that is deployed when its block is entered, and stopped when that is left.

    Args:
        configuration: The path of a `*.dstack.yml`, YAML text, a mapping or a model.
        options: Those of `load_service`.
    """

    def __init__(
        self, configuration: str | Path | dict[str, Any] | ServiceConfiguration, **options: Any
    ) -> None:
        self._configuration, self._options = configuration, options
        self._name = ""

    def __enter__(self) -> Endpoint:
        """Deploy the service.

        Returns:
            Where it answers.

        Raises:
            ConflictError: If a service of that name serves already.
            PrefectDstackError: If it cannot be deployed; nothing of it is left then.
        """
        return self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the service."""
        self._end()

    async def __aenter__(self) -> Endpoint:
        """Deploy the service without blocking an event loop; see `__enter__`."""
        return await in_thread(self._begin)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the service without blocking an event loop."""
        await in_thread(self._end)

    @connected
    def _begin(self) -> Endpoint:
        loaded = load_service(self._configuration, **self._options)
        self._name = loaded.name or ""
        record = find_record(self._name)
        if record is not None and (record.active is not None or record.deploying is not None):
            raise ConflictError(
                f"{self._name}: is there already, and would be stopped at the end; give another name"
            )
        return deploy_service(loaded)

    def _end(self) -> None:
        with contextlib.suppress(NotFoundError):  # somebody else has stopped and deleted it
            stop_service(self._name)


def service(
    configuration: str | Path | dict[str, Any] | ServiceConfiguration,
    name: str | None = None,
    *,
    profile: str | None = None,
    args: list[str] | None = None,
    directory: str | Path | None = None,
) -> Service:
    """Deploy a service for the time of a `with` or `async with` block, and stop it whatever happens there.

    Args:
        configuration: The path of a `*.dstack.yml`, YAML text, a mapping or a model.
        name: The name of the service; default: the configuration's. No service of that name may serve yet.
        profile: The profile whose settings are used where the configuration has none.
        args: What `run.args` stands for in the configuration.
        directory: What relative paths start from, instead of the file's directory; of a mapping or YAML text,
            instead of the current one.

    Returns:
        The service; its block is given the `Endpoint`.

    Example:
        ```python
        import httpx
        from prefect import flow
        from prefect_dstack import service


        @flow
        def score(rows: list[dict[str, float]]) -> list[float]:
            with service("model.dstack.yml", name="model-for-a-job") as endpoint:
                return [httpx.post(f"{endpoint.url}/score", json=row).json()["score"] for row in rows]
        ```
    """
    return Service(configuration, name=name, profile=profile, args=args or (), directory=directory)
