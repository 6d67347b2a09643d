"""Container images: pulled when they are missing, or when their tag may have moved."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from docker import DockerClient
from docker.errors import APIError, ImageNotFound
from docker.models.images import Image
from docker.utils import parse_repository_tag

from prefect_dstack.configurations import RegistryCredentials
from prefect_dstack.errors import ImageError
from prefect_dstack.runtimes.base import Report

__all__ = ["ensure_image", "image_digests"]

REPORT_INTERVAL = 5.0


def ensure_image(
    engine: DockerClient,
    image: str,
    registry: RegistryCredentials | None,
    where: str,
    report: Report,
    *,
    pull: bool = False,
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
        pull: Whether it is pulled whatever its tag, if it is from a registry.

    Raises:
        ImageError: If it is not there and cannot be pulled.
    """
    repository, tag = parse_repository_tag(image)
    present = _present(engine, image)
    pull = tag in (None, "latest") or (pull and present and bool(_registry_digests(engine.images.get(image))))
    if present and not pull:
        return
    report(f"pulling {image} on {where}")
    try:
        stream = engine.api.pull(
            repository, tag=tag or "latest", stream=True, decode=True, auth_config=_credentials(registry)
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


def image_digests(
    engine: DockerClient, image: str, registry: RegistryCredentials | None, container: str
) -> tuple[str, str]:
    """Return which image a container runs, and which one its reference stands for now.

    The registry says what it stands for. Of an image that was built or loaded here, the engine does: a
    registry may know another one by that name.

    Args:
        engine: The engine of the container.
        image: The reference, such as `registry.example.com/model:stable`.
        registry: Credentials for a private registry.
        container: The id of the container.

    Returns:
        Two digests, equal if the container runs the present image.
    """
    running = engine.containers.get(container).image
    if digests := _registry_digests(running):
        with contextlib.suppress(APIError):
            found = engine.api.inspect_distribution(  # type: ignore[no-untyped-call]
                image, auth_config=_credentials(registry)
            )
            newest = str(found["Descriptor"]["digest"])
            return newest if newest in digests else digests[0], newest
    was = "" if running is None else str(running.id)
    try:
        return was, str(engine.images.get(image).id)
    except ImageNotFound:
        return was, was


def _registry_digests(image: Image | None) -> list[str]:
    """Return the digests by which registries know an image; none of one that was built or loaded here."""
    known = [] if image is None else image.attrs.get("RepoDigests") or []
    return [str(reference).rpartition("@")[2] for reference in known]


def _credentials(registry: RegistryCredentials | None) -> dict[str, str] | None:
    if registry is None:
        return None
    return {"username": registry.username, "password": registry.password.get_secret_value()}


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
