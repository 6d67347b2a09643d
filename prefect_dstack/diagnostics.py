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
    return [_python(), _haproxy(), _shell(), _docker(), prefect, *(_aws() if prefect.level == "ok" else ())]


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


def _aws() -> Iterator[Diagnosis]:
    """Try every action that AWS must allow, if an account is configured; nothing is done there."""
    from prefect.settings import get_current_settings

    from prefect_dstack.api import local_server_url

    if get_current_settings().api.url is None and local_server_url() is None:
        return
    from prefect_dstack.api import connect
    from prefect_dstack.tasks.inventory import inventory

    connect(lambda _: None)
    backend = inventory().aws
    if backend is None:
        return
    from prefect_dstack.backends.aws import check_permissions

    for check in check_permissions(backend.account.aws):
        summary = f"AWS {check.action} in {check.region}"
        if check.outcome == "denied":
            remedy = "allow it: prefect-dstack doctor --iam-policy prints the least policy that suffices"
            yield Diagnosis("problem", summary, check.detail or "denied", remedy)
        else:
            yield Diagnosis("ok", summary, check.outcome)
