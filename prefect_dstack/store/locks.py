"""One deployment of a service at a time, whoever starts it and wherever it runs.

The lock is a slot of a Prefect global concurrency limit, held with a lease that is renewed while its holder
lives. Prefect's own `concurrency` does not tell the lease, by which alone the slot of a holder that died can
be given back without taking it from whoever has it by then.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_dstack.domain.record import Deploying
from prefect_dstack.store.runs import has_died, name_of_run

__all__ = ["lock", "remove_lock"]

# A killed holder's slot is free again after its lease, in seconds: the shortest that Prefect grants.
LEASE = 60.0
RENEWALS_PER_LEASE = 3
RENEWAL_TIMEOUT = 10.0
# So long after its holder's death, a slot that is still taken has no lease: a server that keeps leases in its
# memory has been restarted.
FORGOTTEN = 1.5 * LEASE
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 2.0

Report = Callable[[str], None]


@contextlib.contextmanager
def lock(
    name: str,
    flow_run: str,
    holder: Callable[[], Deploying | None],
    report: Report,
    timeout: float = 3600.0,
) -> Iterator[str]:
    """Hold a lock that all flow runs of one Prefect API share.

    Args:
        name: What is locked; the global concurrency limit is named after it.
        flow_run: The id of the flow run that wants it.
        holder: Tells the deployment that seems to hold it, to see whether that one is over.
        report: Told when it has to wait.
        timeout: Seconds to wait at most.

    Yields:
        The id of its lease, once it is held.

    Raises:
        TimeoutError: If it cannot be had in time.
    """
    limit = f"prefect-dstack-{name}"
    with get_client(sync_client=True) as client:
        # Two may make it at once: the first counts.
        with contextlib.suppress(ObjectAlreadyExists):
            client.upsert_global_concurrency_limit_by_name(limit, 1)
        # `service-shop` is what people call `shop`.
        subject = name.partition("-")[2] or name
        lease = _wait_for(client, limit, flow_run, holder, lambda line: report(f"{subject}: {line}"), timeout)
    ended, lost = threading.Event(), threading.Event()
    # A client of its own: made here, where Prefect's settings are known, and not this thread's.
    own = get_client(httpx_settings={"timeout": RENEWAL_TIMEOUT}, sync_client=True)
    renewal = threading.Thread(target=_renew, args=(own, lease, ended, lost), name=limit, daemon=True)
    renewal.start()
    try:
        yield str(lease)
    finally:
        ended.set()
        renewal.join()
        try:
            with get_client(sync_client=True) as client:
                client.release_concurrency_slots_with_lease(lease)
                other = holder() if lost.is_set() else None
                if lost.is_set() and (other is None or other.flow_run == flow_run):
                    _free(client, limit)
        except httpx.TransportError as error:
            report(f"{limit}: will be free when its lease of {LEASE:.0f} s has ended: {error}")


def remove_lock(name: str) -> None:
    """Remove a lock that nobody needs any more.

    Args:
        name: What was locked.
    """
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        client.delete_global_concurrency_limit_by_name(f"prefect-dstack-{name}")


def _wait_for(
    client: SyncPrefectClient,
    limit: str,
    flow_run: str,
    holder: Callable[[], Deploying | None],
    report: Report,
    timeout: float,
) -> UUID:
    started, pause, told = time.monotonic(), FIRST_PAUSE, False
    dead: dict[str, float] = {}
    while (lease := _acquire(client, limit, flow_run)) is None:
        now, other = time.monotonic(), holder()
        if other is not None and other.flow_run != flow_run and has_died(other):
            if other.flow_run not in dead:
                dead[other.flow_run] = now
                report(f"freed from {name_of_run(other.flow_run)}, which is over")
                if other.lease:
                    client.release_concurrency_slots_with_lease(UUID(other.lease))
                    continue
            elif now - dead[other.flow_run] > FORGOTTEN:
                dead[other.flow_run] = now
                _free(client, limit)
                continue
        elif not told:
            known = other is not None and other.flow_run not in ("", flow_run)
            whose = name_of_run(other.flow_run) if other and known else "another flow run"
            report(f"waiting for {whose} to finish")
            told = True
        if now - started >= timeout:
            raise TimeoutError(f"{limit}: another flow run held it for {timeout:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return lease


def _acquire(client: SyncPrefectClient, limit: str, flow_run: str) -> UUID | None:
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(flow_run))
    try:
        answer = client.increment_concurrency_slots_with_lease([limit], 1, "concurrency", LEASE, holder)
    except httpx.HTTPStatusError as error:
        if error.response.status_code != HTTPStatus.LOCKED:
            raise
        return None
    return UUID(answer.json()["lease_id"])


def _renew(client: SyncPrefectClient, lease: UUID, ended: threading.Event, lost: threading.Event) -> None:
    """Renew a lease until its holder is done; an API that does not answer is asked again."""
    with client:
        while not ended.wait(LEASE / RENEWALS_PER_LEASE):
            try:
                client.renew_concurrency_lease(lease, LEASE)
            except httpx.HTTPStatusError as error:
                if error.response.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                    lost.set()
                    return
            except httpx.TransportError:
                pass  # the next turn comes before the lease ends


def _free(client: SyncPrefectClient, limit: str) -> None:
    client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=0))
