"""One deployment of a service at a time, whoever starts it and wherever it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from uuid import UUID

from httpx import HTTPStatusError
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from prefect_dstack.services.record import Deploying
from prefect_dstack.tasks.runs import has_died

__all__ = ["lock"]

# A killed holder's slot is free again after its lease, in seconds; Prefect renews it meanwhile.
LEASE = 60.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 2.0


@contextlib.contextmanager
def lock(
    name: str,
    flow_run: str,
    holder: Callable[[], Deploying | None],
    report: Callable[[str], None],
    timeout: float = 3600.0,
) -> Iterator[None]:
    """Hold a lock that all flow runs of one Prefect API share.

    Args:
        name: What is locked; the global concurrency limit is named after it.
        flow_run: The id of the flow run that wants it.
        holder: Tells the deployment that seems to hold it, to see whether that one is over.
        report: Told when it has to wait.
        timeout: Seconds to wait at most.

    Yields:
        Once it is held.

    Raises:
        TimeoutError: If it cannot be had in time.
    """
    limit = f"prefect-dstack-{name}"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit, 1)
    deadline = time.monotonic() + timeout
    pause, told = FIRST_PAUSE, False
    while True:
        held = contextlib.ExitStack()
        try:
            held.enter_context(
                concurrency(
                    limit,
                    max_retries=0,
                    strict=True,
                    lease_duration=LEASE,
                    holder=ConcurrencyLeaseHolder(type="flow_run", id=UUID(flow_run)),
                )
            )
        except Exception as error:
            if not _is_taken(error):
                raise
            other = holder()
            if other is not None and other.flow_run != flow_run and has_died(other):
                report(f"{name}: freed from flow run {other.flow_run}, which is over")
                _free(limit)
                continue
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{name}: another deployment held it for {timeout:.0f} s") from error
            if not told:
                report(f"{name}: waiting for flow run {other.flow_run if other else ''} to finish")
                told = True
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
            continue
        with held:
            yield
        return


def _free(limit: str) -> None:
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=0))


def _is_taken(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, HTTPStatusError):
            return error.response.status_code == HTTPStatus.LOCKED
        error = error.__cause__ or error.__context__
    return False
