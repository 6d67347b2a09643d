"""What this machine has and lacks for putting services on the air."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from prefect_dstack.errors import HostError, PrefectDstackError

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """What one look found.

    Attributes:
        level: `ok`; `missing`: only something optional is not there; `problem`: the main job cannot be done.
        summary: What was looked at.
        detail: What was found.
        resolution: What to do about it; empty if nothing.
    """

    level: Literal["ok", "missing", "problem"]
    summary: str
    detail: str
    resolution: str = ""


def diagnose() -> list[Diagnosis]:
    """Look at everything that a deployment on this machine may need.

    Returns:
        The findings.
    """
    prefect = _prefect()
    return [
        _python(),
        _haproxy(),
        _shell(),
        _docker(),
        prefect,
        *(_backends() if prefect.level == "ok" else ()),
    ]


def _python() -> Diagnosis:
    detail = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return Diagnosis("ok", "Python", detail)


def _haproxy() -> Diagnosis:
    from prefect_dstack.gateways.local import haproxy_binary

    try:
        return Diagnosis("ok", "HAProxy, for the gateway of this machine", str(haproxy_binary()))
    except PrefectDstackError as error:
        return Diagnosis("problem", "HAProxy, for the gateway of this machine", "not found", str(error))


def _shell() -> Diagnosis:
    shell = shutil.which("bash") or shutil.which("sh")
    if shell is None:
        return Diagnosis("problem", "a shell, for services without an image", "not found", "install bash")
    return Diagnosis("ok", "a shell, for services without an image", shell)


def _docker() -> Diagnosis:
    from prefect_dstack.hosts.local_machine import LocalMachine

    try:
        version = LocalMachine().docker().version()["Version"]
    except HostError as error:
        return Diagnosis(
            "missing", "a Docker Engine, for services with an image", "does not answer", str(error)
        )
    return Diagnosis("ok", "a Docker Engine, for services with an image", version)


def _prefect() -> Diagnosis:
    from prefect.settings import get_current_settings

    from prefect_dstack.api import answers, local_server_url

    configured = get_current_settings().api.url
    if configured is None:
        url = local_server_url()
        return Diagnosis(
            "ok", "a Prefect API", url or "none is configured; a local one starts with the first deployment"
        )
    if answers(configured):
        return Diagnosis("ok", "a Prefect API", configured)
    return Diagnosis(
        "problem", "a Prefect API", f"{configured} does not answer", "start it, or unset PREFECT_API_URL"
    )


def _backends() -> Iterator[Diagnosis]:
    """Let every configured backend check its own access; nothing is done there."""
    from prefect.settings import get_current_settings

    from prefect_dstack.api import connect, local_server_url

    if get_current_settings().api.url is None and local_server_url() is None:
        return
    connect(lambda _: None)
    from prefect_dstack.backends.base import ChecksItself
    from prefect_dstack.store.sources import resolve_infrastructure

    for backend in resolve_infrastructure().backends.values():
        if isinstance(backend, ChecksItself):
            for check in backend.checks():
                level: Literal["ok", "problem"] = "ok" if check.passed else "problem"
                yield Diagnosis(level, check.subject, check.detail, check.resolution)
