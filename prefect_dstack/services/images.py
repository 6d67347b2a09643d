"""The image of containers for which a configuration names none."""

from __future__ import annotations

from prefect_dstack.configurations import RunConfiguration
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.settings import settings

__all__ = ["default_image"]


def default_image(configuration: RunConfiguration) -> str | None:
    """Return the default image of a configuration.

    Args:
        configuration: A service, a task or a development environment.

    Returns:
        The image of the settings, with the compiler of CUDA or a Docker Engine if the configuration asks for
        it; None if the configuration names an image, or runs as a process.
    """
    if configuration.image is not None or runtime_of(configuration) == "process":
        return None
    if configuration.docker:
        return settings().default_docker_image
    return settings().default_nvcc_image if configuration.nvcc else settings().default_image
