"""Tasks on canaries: give one a share of the traffic, and compare it with the revision that served before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from prefect_dstack.configurations import Canary
from prefect_dstack.controller.comparison import Comparison
from prefect_dstack.domain.canary import Figures, Step, Verdict
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.tasks.retries import is_retryable

__all__ = ["share_traffic", "watch_canary"]

LONGEST_PAUSE = 5.0
REPORT_INTERVAL = 30.0


@task(
    name="share-traffic",
    task_run_name="share-traffic {service}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[0.5, 2],
    retry_condition_fn=is_retryable,
)
def share_traffic(gateway: ManagedGateway, service: str, weights: Mapping[int, int]) -> None:
    """Set the weights of replicas, by their revision, and count what each does while they differ.

    Args:
        gateway: The gateway.
        service: The service.
        weights: The weight of each replica by revision; the usual one for those of other revisions. None
            at all ends the comparison.
    """
    gateway.share(service, weights)


@task(name="watch-canary", task_run_name="watch-canary {service}@{new}", cache_policy=NO_CACHE)
def watch_canary(
    gateway: ManagedGateway, service: str, old: int, new: int, terms: Canary, step: Step
) -> Verdict:
    """Compare a canary with the revision that served before, until the time is up or there is no doubt.

    Args:
        gateway: The gateway.
        service: The service.
        old: The revision that served before.
        new: The canary.
        terms: How much worse it may be.
        step: Which share of the requests it gets, and for how long.

    Returns:
        What is to be done.
    """
    logger = get_run_logger()
    comparison = Comparison(gateway, service, old, new)
    start = told = time.monotonic()
    progress = create_progress_artifact(
        progress=0.0,
        key=f"{service}-canary-progress",
        description=f"{service}@{new} beside {service}@{old}, with {step.weight:g} % of the requests",
        _sync=True,  # type: ignore[call-arg]
    )
    pause = min(LONGEST_PAUSE, max(step.duration / 20, 0.1))
    while True:
        elapsed = time.monotonic() - start
        over = elapsed >= step.duration
        verdict = comparison.judge(terms, over=over)
        if verdict.decision != "wait" or time.monotonic() - told >= REPORT_INTERVAL:
            told = time.monotonic()
            figures = comparison.look()
            logger.info(
                "%s@%d (old): %s; %s@%d (canary): %s", service, old, figures[0], service, new, figures[1]
            )
            done = 100.0 if verdict.decision != "wait" else 100 * elapsed / step.duration
            update_progress_artifact(progress, progress=done, _sync=True)  # type: ignore[call-arg, arg-type]
        if verdict.decision != "wait":
            _publish(service, [old, new], comparison.look(), verdict)
            return verdict
        time.sleep(min(pause, max(step.duration - elapsed, 0.0)))


def _publish(service: str, revisions: Sequence[int], figures: Sequence[Figures], verdict: Verdict) -> None:
    create_table_artifact(
        key=f"{service}-canary",
        table=[
            {
                "revision": f"{service}@{revision}",
                "requests": counted.requests,
                "failed": counted.failed,
                "failed, %": round(counted.error_rate, 2),
                "p95, ms": None if counted.p95 is None else round(counted.p95, 1),
            }
            for revision, counted in zip(revisions, figures, strict=True)
        ],
        description=f"The canary of {service}: {verdict.decision}. {verdict.reason}".strip(),
        _sync=True,  # type: ignore[call-arg]
    )
