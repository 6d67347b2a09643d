"""What a process of HAProxy tells the next one at a reload: which replicas fail their checks."""

from __future__ import annotations

from prefect_dstack.gateways.servers import backend
from prefect_dstack.gateways.state import GatewayState

__all__ = ["FAILING", "NONE_FAILING", "failing"]

FAILING = "servers.state"
# The version of the format. That is all there is but during a reload: after a crash, every check begins anew.
NONE_FAILING = "1\n"

_BACKEND, _NAME, _ADDRESS, _OPERATION, _ADMINISTRATION, _PORT = 1, 3, 4, 5, 6, 18


def failing(answer: str, state: GatewayState) -> str:
    """Keep what says that a replica fails its checks; all else comes from the configuration.

    Args:
        answer: To `show servers state`.
        state: The state that the next process is to have.

    Returns:
        What `servers.state` is to hold during the reload.
    """
    wanted = {
        (backend(service), replica.name, replica.address, str(replica.port))
        for service, route in state.routes.items()
        for replica in route.replicas.values()
        if replica.checked
    }
    lines = answer.splitlines()
    header = [line for line in lines if line.startswith("# be_id")]
    kept = []
    for line in lines:
        fields = line.split(" ")
        if len(fields) <= _PORT or line.startswith("#"):
            continue
        which = (fields[_BACKEND], fields[_NAME], fields[_ADDRESS], fields[_PORT])
        if which in wanted and fields[_OPERATION] == fields[_ADMINISTRATION] == "0":
            kept.append(line)
    return NONE_FAILING + "".join(f"{line}\n" for line in header + kept)
