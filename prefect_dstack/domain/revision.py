"""What makes a new revision: which changes take new replicas, and which only the gateway's attention."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from prefect_dstack.configurations import Environment, RegistryCredentials, ServiceConfiguration

__all__ = ["settings_digest", "workload_digest", "written"]

# Everything else of a configuration goes into the replicas themselves.
SETTINGS = frozenset(
    {
        "auth",
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
        "replicas",
        "retain",
        "rollout",
        "scaling",
        "stop_duration",
        "strip_prefix",
        "timeouts",
    }
)


def written(configuration: ServiceConfiguration) -> dict[str, Any]:
    """Give a configuration as it was written, so that it can be recorded and loaded again.

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
) -> str:
    """Sum up all that takes new replicas when it changes, the values of secrets among it.

    Args:
        configuration: The service.
        environment: Its environment with all values.
        registry: Its credentials.
        directory: Where a process starts.
        salt: The service's own, so that the digest tells nothing of the values.

    Returns:
        A hexadecimal digest.
    """
    keys = {key: value for key, value in written(configuration).items() if key not in SETTINGS}
    port = configuration.port.port
    secrets = {
        "environment": environment.reveal(),
        "registry": None if registry is None else registry.password.get_secret_value(),
    }
    place = directory if configuration.image is None else ""
    return _digest({"keys": {**keys, "port": port}, "secrets": secrets, "directory": place}, salt)


def settings_digest(configuration: ServiceConfiguration, salt: str) -> str:
    """Sum up all that changes without new replicas.

    Args:
        configuration: The service.
        salt: The service's own.

    Returns:
        A hexadecimal digest.
    """
    keys = {key: value for key, value in written(configuration).items() if key in SETTINGS}
    return _digest({"keys": keys, "port": configuration.port.gateway_port}, salt)


def _digest(content: Mapping[str, Any], salt: str) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hmac.new(salt.encode(), text.encode(), hashlib.sha256).hexdigest()
