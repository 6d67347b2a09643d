"""What makes a new revision: which changes take new replicas, and which only the gateway's attention."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from prefect_dstack.configurations import Environment, RegistryCredentials, ServiceConfiguration
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.domain.record import Revision, ServiceRecord, readable

__all__ = [
    "changes_of",
    "compared",
    "difference",
    "settings_digest",
    "value_digests",
    "workload_digest",
    "written",
]

# How many replicas are wanted now is no part of a revision: the record keeps it.
DESIRED = frozenset({"replicas", "scaling"})

# Everything else of a configuration goes into the replicas themselves.
SETTINGS = frozenset(
    {
        "access_log",
        "auth",
        "budget",
        "client_max_body_size",
        "cors",
        "domain",
        "domains",
        "gateway",
        "https",
        "max_concurrency",
        "model",
        "name",
        "path_prefix",
        "probes",
        "queue_timeout",
        "rate_limits",
        "restart_after",
        "retain",
        "retry",
        "rollout",
        "stop_duration",
        "strip_prefix",
        "timeouts",
    }
)


def written(configuration: ServiceConfiguration) -> dict[str, Any]:
    """Return a configuration as it was written, so that it can be recorded and loaded again.

    Args:
        configuration: The service.

    Returns:
        The keys that were set; secrets only as references.
    """
    return configuration.model_dump(mode="json", exclude_unset=True) | {"type": "service"}


def workload_digest(
    configuration: ServiceConfiguration,
    environment: Environment,
    registry: RegistryCredentials | None,
    directory: str,
    salt: str,
    bundle: str = "",
    default_image: str = "",
    model_version: str = "",
) -> str:
    """Return a digest of all that needs new replicas when it changes, values of secrets included.

    Args:
        configuration: The service.
        environment: Its environment with all values.
        registry: Its credentials.
        directory: Where a process starts.
        salt: The service's own, so that the digest tells nothing of the values.
        bundle: The digest of the files that it brings along; empty if there are none.
        default_image: The image of its containers if it names none; empty if it needs none.
        model_version: What tells the content of its model from any other; empty if that is not known.

    Returns:
        A hexadecimal digest.
    """
    keys = {key: value for key, value in written(configuration).items() if key not in SETTINGS | DESIRED}
    if configuration.replica_groups:
        keys["groups"] = [
            group.model_dump(mode="json", exclude_unset=True, exclude={*DESIRED, "count"})
            for group in configuration.replica_groups
        ]
    port = configuration.port.port
    secrets = {
        "environment": environment.reveal(),
        "registry": None if registry is None else registry.password.get_secret_value(),
    }
    place = directory if runtime_of(configuration) == "process" and not bundle else ""
    content = {"keys": {**keys, "port": port}, "secrets": secrets, "directory": place}
    # What is not there is left out: the digests of what has been recorded must stay the same.
    also = {"bundle": bundle, "default_image": default_image, "model_version": model_version}
    return _digest({**content, **{key: value for key, value in also.items() if value}}, salt)


def value_digests(
    environment: Environment, registry: RegistryCredentials | None, salt: str
) -> dict[str, str]:
    """Return digests of the secret values of a service, so that changes can be named without the values.

    Args:
        environment: Its environment with all values.
        registry: Its credentials.
        salt: The service's own.

    Returns:
        Digests by the dotted key of what has the value.
    """
    secret = {f"env.{name}": value.get_secret_value() for name, value in environment.secret.items()}
    if registry is not None:
        secret["registry_auth.password"] = registry.password.get_secret_value()
    return {key: _digest({key: value}, salt)[:16] for key, value in sorted(secret.items())}


def settings_digest(configuration: ServiceConfiguration, salt: str) -> str:
    """Return a digest of all that changes without new replicas.

    Args:
        configuration: The service.
        salt: The service's own.

    Returns:
        A hexadecimal digest.
    """
    # A fixed number is only what is wanted now; a range is the terms of whoever scales.
    scales = not configuration.group_names and not configuration.replica_range.fixed
    relevant = SETTINGS | DESIRED if scales else SETTINGS
    keys = {key: value for key, value in written(configuration).items() if key in relevant}
    return _digest({"keys": keys, "port": configuration.port.gateway_port}, salt)


def _digest(content: Mapping[str, Any], salt: str) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hmac.new(salt.encode(), text.encode(), hashlib.sha256).hexdigest()


def changes_of(record: ServiceRecord, revision: Revision) -> str:
    """Return what a revision changed.

    Args:
        record: The record of the service.
        revision: One of its revisions.

    Returns:
        A unified diff against the kept revision before it that did not fail, with a line for each value that
        changed and is not shown; empty if nothing changed.
    """
    before = [known for known in record.revisions if known.number < revision.number]
    # What failed never served, so nothing was changed from there.
    before = [known for known in before if known.outcome != "failed"] or before
    return difference(record.name, before[-1], revision) if before else ""


def compared(before: Revision, after: Revision) -> list[str]:
    """Return which parts of one revision of a service differ from those of another.

    Args:
        before: The one.
        after: The other.

    Returns:
        Each part that one of them has, whether it changed, and the digests of what has one.
    """
    old, new = (readable(it.configuration) for it in (before, after))
    lines = [f"configuration {'unchanged' if old == new else 'changed'}"]
    if before.values or after.values:
        lines.append(f"secret values {'unchanged' if before.values == after.values else 'changed'}")
    for part, was, now in (
        ("files", before.bundle, after.bundle),
        ("model", before.model_version, after.model_version),
    ):
        if was or now:
            lines.append(f"{part} {moved(was, now)}")
    return lines


def moved(was: str, now: str) -> str:
    """Return whether a digest changed, in words, with as much of it as people compare.

    Args:
        was: The one before; empty: none was known.
        now: The present one.
    """
    if was == now:
        return f"unchanged ({_short(now)})"
    return f"changed ({_short(was)} → {_short(now)})"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12] or "not known"


def difference(name: str, before: Revision, after: Revision) -> str:
    """Return how one revision of a service differs from another.

    Args:
        name: The name of the service.
        before: The one.
        after: The other.

    Returns:
        A unified diff, with a line for each value that differs and is not shown; empty if nothing does.
    """
    lines = list(
        difflib.unified_diff(
            readable(before.configuration).splitlines(),
            readable(after.configuration).splitlines(),
            f"{name}@{before.number}",
            f"{name}@{after.number}",
            lineterm="",
            n=1,
        )
    )
    old, new = before.values, after.values
    lines += [f"~{key}: its value changed" for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]
    if before.bundle != after.bundle:
        lines.append("~files: their content changed")
    if before.model_version != after.model_version:
        lines.append("~model_asset: its content changed")
    return "\n".join(lines)
