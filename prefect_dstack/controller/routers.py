"""Replicas that route requests to other replicas of their service, and are told which there are.

Spoken is the API of SGLang's model gateway: `GET /workers`, `POST /workers`, `DELETE /workers/ID`.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_dstack.domain.groups import group_name
from prefect_dstack.errors import HostError, PrefectDstackError, ReplicaNotReadyError
from prefect_dstack.gateways.state import GatewayState
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica, Observation

__all__ = ["Party", "party_of", "tell_router", "untold"]

# Seconds for one question.
TIMEOUT = 10.0
# A router asks a worker itself before it takes it.
PATIENCE = 60.0
POLL = 0.2
KINDS = ("prefill", "decode")


@dataclass(frozen=True)
class Party:
    """The routers of a service, and the workers that each of them is to know.

    Attributes:
        routers: The replicas that route.
        workers: The replicas that get requests from them.
    """

    routers: tuple[FoundReplica, ...] = ()
    workers: tuple[FoundReplica, ...] = ()


def party_of(
    observation: Observation,
    state: GatewayState | None,
    service: str,
    groups: Mapping[int, Sequence[str]],
    routers: Mapping[int, str],
    *,
    untouched: int | None = None,
    about: str = "",
) -> Party:
    """Return the routers and the workers of a service, whichever of its revisions they are of.

    Args:
        observation: What was found of it.
        state: What its gateway routes.
        service: The service.
        groups: The names of the groups of each revision.
        routers: The name of the group that routes, of each revision that has one.
        untouched: A revision whose replicas are left alone.
        about: A router that is about to be registered at the gateway.
    """
    route = None if state is None else state.routes.get(service)
    members = {} if route is None else route.replicas
    ready = {name for name, member in members.items() if member.state == "ready"}
    found: tuple[list[FoundReplica], list[FoundReplica]] = ([], [])
    for one in observation.found:
        stamp = one.replica.stamp
        is_known = stamp.revision in routers and stamp.revision != untouched
        if not is_known or one.status.state != "running" or stamp.name not in {*ready, about}:
            continue
        routes = group_name(groups[stamp.revision], stamp.replica) == routers[stamp.revision]
        found[0 if routes else 1].append(one)
    return Party(*(tuple(found) for found in found))


def tell_router(
    infrastructure: Infrastructure, router: FoundReplica, workers: Sequence[FoundReplica]
) -> list[str]:
    """Make the workers of a router those that there are, and wait until it has taken them.

    Args:
        infrastructure: Where they run.
        router: The router.
        workers: The replicas to which it is to route requests.

    Returns:
        A line for each worker that came or went.

    Raises:
        ReplicaNotReadyError: If it does not do as it is told.
    """
    wanted = {_url(worker): worker for worker in workers}
    known = _workers(infrastructure, router)
    lines = []
    for url, id_ in known.items():
        if url not in wanted:
            _request(infrastructure, router, "DELETE", f"/workers/{id_}")
            lines.append(f"sends nothing more to {url}")
    for url, worker in wanted.items():
        if url not in known:
            described = {"url": url, **_kind(infrastructure, worker)}
            _request(infrastructure, router, "POST", "/workers", described)
            lines.append(f"sends requests to {worker.replica.name} at {url}")
    deadline = time.monotonic() + PATIENCE
    while lines and (known := _workers(infrastructure, router)).keys() != wanted.keys():
        if time.monotonic() > deadline:
            there = ", ".join(sorted(known)) or "none"
            raise ReplicaNotReadyError(
                f"{router.replica.name}: does not take as workers {', '.join(sorted(wanted))}; it has {there}"
            )
        time.sleep(POLL)
    return lines


def untold(infrastructure: Infrastructure, party: Party) -> list[str]:
    """Return the names of the routers that do not have the workers that there are, such as after a restart.

    Args:
        infrastructure: Where they run.
        party: The routers and the workers.
    """
    wanted = {_url(worker) for worker in party.workers}
    names = []
    for router in party.routers:
        try:
            if _workers(infrastructure, router).keys() != wanted:
                names.append(router.replica.name)
        except PrefectDstackError:
            continue  # that it does not answer is its probe's to find
    return names


def _url(worker: FoundReplica) -> str:
    return f"http://{worker.replica.address}:{worker.replica.port}"


def _workers(infrastructure: Infrastructure, router: FoundReplica) -> dict[str, str]:
    """Return the ids of a router's workers by their URLs."""
    answer = _request(infrastructure, router, "GET", "/workers")
    workers = answer.get("workers") if isinstance(answer, dict) else None
    if not isinstance(workers, list) or not all(isinstance(worker, dict) for worker in workers):
        raise ReplicaNotReadyError(
            f"{router.replica.name}: does not list its workers at /workers, as SGLang's model gateway does"
        )
    return {str(worker.get("url", "")).rstrip("/"): str(worker.get("id", "")) for worker in workers}


def _kind(infrastructure: Infrastructure, worker: FoundReplica) -> dict[str, Any]:
    """Return what a worker says of itself; what says nothing is as good as any other."""
    try:
        said = _request(infrastructure, worker, "GET", "/server_info")
    except PrefectDstackError:
        said = None
    mode = said.get("disaggregation_mode") if isinstance(said, dict) else None
    if mode not in KINDS:
        return {"worker_type": "regular"}
    port = said.get("disaggregation_bootstrap_port") if mode == "prefill" else None
    return {"worker_type": mode, **({"bootstrap_port": port} if port is not None else {})}


def _request(
    infrastructure: Infrastructure, found: FoundReplica, method: str, path: str, body: object = None
) -> Any:
    replica, what = found.replica, f"{found.replica.name}: {method} {path}"
    connection = http.client.HTTPConnection("localhost", replica.port, timeout=TIMEOUT)
    try:
        machine = infrastructure.machine(found.instance)
        connection.sock = machine.connect(replica.address, replica.port, timeout=TIMEOUT)
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException, HostError) as error:
        raise ReplicaNotReadyError(f"{what}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if not 200 <= response.status < 300:
        raise ReplicaNotReadyError(f"{what}: {response.status} {response.reason}")
    try:
        return json.loads(answer or b"null")
    except ValueError:
        return None
