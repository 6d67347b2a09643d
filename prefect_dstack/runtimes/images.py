"""Container images: pulled when they are missing, or when their tag may have moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from docker import DockerClient
from docker.errors import APIError, ImageNotFound
from docker.utils import parse_repository_tag

from prefect_dstack.configurations import RegistryCredentials
from prefect_dstack.errors import ImageError
from prefect_dstack.runtimes.base import Report

__all__ = ["ensure_image"]

REPORT_INTERVAL = 5.0


def ensure_image(
    engine: DockerClient, image: str, registry: RegistryCredentials | None, where: str, report: Report
) -> None:
    """Ensure that an engine has an image.

    An image whose tag is `latest`, or missing, is pulled each time, any other only when it is not there,
    as Kubernetes does it. If the registry does not answer, an image that is there is good enough.

    Args:
        engine: The engine that needs it.
        image: The image's reference.
        registry: Credentials for a private registry.
        where: What to call the engine's machine in messages.
        report: Told of the progress, at most every few seconds.

    Raises:
        ImageError: If it is not there and cannot be pulled.
    """
    repository, tag = parse_repository_tag(image)
    present = _present(engine, image)
    if present and tag not in (None, "latest"):
        return
    report(f"pulling {image} on {where}")
    credentials = (
        None
        if registry is None
        else {"username": registry.username, "password": registry.password.get_secret_value()}
    )
    try:
        stream = engine.api.pull(
            repository, tag=tag or "latest", stream=True, decode=True, auth_config=credentials
        )
        for line in _progress(stream):
            report(f"pulling {image} on {where}: {line}")
    except (APIError, ImageError) as error:
        words = error.explanation if isinstance(error, APIError) and error.explanation else str(error)
        if present:
            report(f"{image} cannot be pulled ({words}), using the one that {where} has")
            return
        hint = "check its name" if registry is not None else "check its name, or set `registry_auth`"
        raise ImageError(
            f"{image}: cannot be pulled on {where}, {hint}: {' '.join(words.split())}"
        ) from error


def _present(engine: DockerClient, image: str) -> bool:
    try:
        engine.images.get(image)
    except ImageNotFound:
        return False
    return True


def _progress(stream: Iterator[dict[str, Any]]) -> Iterator[str]:
    layers: dict[str, tuple[int, int]] = {}
    told = time.monotonic()
    for event in stream:
        if "error" in event:
            raise ImageError(event["error"])
        detail = event.get("progressDetail") or {}
        if event.get("status") == "Downloading" and detail.get("total"):
            layers[event["id"]] = (detail["current"], detail["total"])
        if event.get("status") in ("Download complete", "Pull complete") and event.get("id") in layers:
            total = layers[event["id"]][1]
            layers[event["id"]] = (total, total)
        if layers and time.monotonic() - told >= REPORT_INTERVAL:
            told = time.monotonic()
            done, total = (sum(amounts) / 1e6 for amounts in zip(*layers.values(), strict=True))
            yield f"{done:,.0f} of {total:,.0f} MB"
