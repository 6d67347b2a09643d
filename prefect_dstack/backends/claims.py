"""What replicas have been promised of a host: on their containers, and kept here until those exist."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import HostNotReadyError

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["Claim", "claims_on", "held_claims", "hold", "let_go"]

# The time from the choice of a host to the container's creation: a large image is pulled meanwhile.
HELD_FOR = 900.0


class Claim(BaseModel):
    """A share of a host."""

    model_config = ConfigDict(frozen=True)

    stamp: Stamp = Field(description="For whom.")
    cpus: float = Field(default=0.0, description="Virtual processors.")
    memory_gb: float = Field(default=0.0, description="Memory in GB.")
    gpu_devices: tuple[str, ...] = Field(default=(), description="The GPUs that are its own.")

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Claim | None:
        """Read the labels of a container; None if it is none of ours."""
        stamp = Stamp.from_labels(labels)
        if stamp is None:
            return None
        try:
            return cls(
                stamp=stamp,
                cpus=float(labels.get("prefect-dstack.cpus") or 0),
                memory_gb=float(labels.get("prefect-dstack.memory-gb") or 0),
                gpu_devices=tuple(filter(None, labels.get("prefect-dstack.gpu-devices", "").split(","))),
            )
        except (ValueError, ValidationError):
            return cls(stamp=stamp)


_lock = threading.Lock()
_held: dict[tuple[str, str], tuple[float, Claim]] = {}


def claims_on(engine: DockerClient, host: str) -> list[Claim]:
    """Return what is reserved on a host: for containers, and by this process for containers to come.

    Args:
        engine: The host's.
        host: Its name.

    Returns:
        One claim for each replica.

    Raises:
        HostNotReadyError: If the engine does not say.
    """
    # They take half a second to import, which whoever has no containers need not pay.
    from docker import errors
    from requests import RequestException

    try:
        containers = engine.api.containers(all=True, filters={"label": "prefect-dstack.service"})
    except (errors.DockerException, RequestException) as error:
        raise HostNotReadyError(f"{host}: its Docker Engine does not list its containers: {error}") from error
    claims = [claim for one in containers if (claim := Claim.from_labels(one.get("Labels") or {}))]
    there = {claim.stamp.name for claim in claims}
    with _lock:
        for name in there:
            _held.pop((host, name), None)
    return claims + [claim for claim in held_claims(host) if claim.stamp.name not in there]


def held_claims(host: str) -> Sequence[Claim]:
    """Return what this process has reserved on a host for replicas that it has not yet seen there.

    Args:
        host: The host's name.

    Returns:
        The claims.
    """
    now = time.monotonic()
    with _lock:
        for key in [key for key, (until, _) in _held.items() if until < now]:
            del _held[key]
        return [claim for (name, _), (_, claim) in _held.items() if name == host]


def hold(host: str, claim: Claim) -> None:
    """Remember a claim until its container is there, or for a quarter of an hour.

    Args:
        host: The host's name.
        claim: What was promised.
    """
    with _lock:
        _held[host, claim.stamp.name] = (time.monotonic() + HELD_FOR, claim)


def let_go(host: str, replica: str) -> None:
    """Forget a claim whose container will not come.

    Args:
        host: The host's name.
        replica: The name of the replica, as its stamp says it.
    """
    with _lock, contextlib.suppress(KeyError):
        del _held[host, replica]
