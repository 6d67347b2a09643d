"""What every replica is told about itself through its environment."""

from __future__ import annotations

from prefect_dstack.domain.stamp import Stamp

__all__ = ["described_environment"]


def described_environment(stamp: Stamp, port: int | None) -> dict[str, str]:
    """Return the variables that identify a replica to itself.

    Args:
        stamp: For whom it runs.
        port: The port it shall listen on.

    Returns:
        Environment variables, named as dstack names them where it has them.
    """
    return {
        "DSTACK_RUN_NAME": stamp.service,
        "DSTACK_REPLICA_NUM": str(stamp.replica),
        "DSTACK_REVISION": str(stamp.revision),
        **({} if port is None else {"DSTACK_SERVICE_PORT": str(port)}),
    }
