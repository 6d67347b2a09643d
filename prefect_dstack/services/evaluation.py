"""A new revision is judged before it gets a request, and at each step of a canary."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

from prefect import Flow, Task, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from prefect_dstack.configurations import PortMapping
from prefect_dstack.controller.goal import Goal
from prefect_dstack.domain.evaluation import Evaluation, Release
from prefect_dstack.domain.record import ServiceRecord
from prefect_dstack.errors import DeploymentError, PrefectDstackError, RejectedError, UserError
from prefect_dstack.hosts.forwarding import Forwarder
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.infrastructure.observation import FoundReplica
from prefect_dstack.services.candidates import start_candidates
from prefect_dstack.services.run import ServiceRun
from prefect_dstack.store.records import save_record

__all__ = ["Evaluate", "evaluate_release", "evaluate_running"]

ROWS_KEPT = 50

Evaluate = Callable[[Release], Evaluation | bool | Awaitable[Evaluation | bool]]
"""Judges a release; a function, a task or a flow."""


def evaluate_release(
    evaluate: Evaluate, goal: Goal, gateway: ManagedGateway, record: ServiceRecord, run: ServiceRun
) -> ServiceRecord:
    """Start one replica of a new revision that gets no requests, and have it judged beside what serves.

    Args:
        evaluate: Judges it.
        goal: The new revision.
        gateway: The gateway in front of the service.
        record: The record of the service.
        run: The flow run that does it.

    Returns:
        The record with what was found, as it was saved.

    Raises:
        RejectedError: If it does not pass.
        UserError: If what judged it returned neither an `Evaluation` nor a bool.
    """
    return evaluate_running(evaluate, goal, start_candidates(goal, 1, gateway, record, run), record, run)


def evaluate_running(
    evaluate: Evaluate,
    goal: Goal,
    found: Sequence[FoundReplica],
    record: ServiceRecord,
    run: ServiceRun,
    *,
    weight: float = 0.0,
) -> ServiceRecord:
    """Have a new revision judged that runs beside what serves.

    Args:
        evaluate: Judges it.
        goal: The new revision.
        found: The replicas of the service.
        record: The record of the service.
        run: The flow run that does it.
        weight: The share of the requests that it gets, in percent.

    Returns:
        The record with what was found, as it was saved.

    Raises:
        RejectedError: If it does not pass.
        UserError: If what judged it returned neither an `Evaluation` nor a bool.
    """
    revision = goal.revision
    assert revision is not None  # noqa: S101 - a rollout is to a revision
    active = record.active_revision
    old = None if active is None else active.replicas_of
    new_one, old_one = _running(found, revision, record), _running(found, old, record)
    if new_one is None:
        raise DeploymentError(f"{goal.service}@{revision}: ended before it was evaluated")
    gets = f"{weight:g} % of the requests" if weight else "no requests yet"
    run.log.info("%s@%d: is being evaluated, and gets %s", goal.service, revision, gets)
    with (
        _led_to(new_one, run.infrastructure) as candidate_url,
        _led_to(old_one, run.infrastructure) as serving_url,
    ):
        release = Release(
            service=goal.service,
            revision=revision,
            candidate_url=candidate_url or "",
            weight=weight,
            serving_revision=None if active is None or serving_url is None else active.number,
            serving_url=serving_url,
        )
        evaluation = _judged(evaluate, release)
    _publish(release, evaluation)
    kept = evaluation.model_copy(update={"table": _plain(evaluation.table)})
    record = record.evaluated(revision, kept)
    save_record(record)
    verdict = "passed its evaluation" if evaluation.passed else "its evaluation rejected it"
    line = f"{goal.service}@{revision}: {verdict}{_figures(evaluation)}"
    if not evaluation.passed:
        raise RejectedError(line)
    run.log.info("%s", line)
    return record


def _figures(evaluation: Evaluation) -> str:
    score = "" if evaluation.score is None else f" with a score of {evaluation.score:g}"
    return f"{score}: {evaluation.reason}" if evaluation.reason else score


def _plain(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first rows of a table in types that JSON has: they are kept in the record."""
    return [
        {
            str(key): value if isinstance(value, str | int | float | None) else str(value)
            for key, value in row.items()
        }
        for row in table[:ROWS_KEPT]
    ]


def _running(
    found: Sequence[FoundReplica], revision: int | None, record: ServiceRecord
) -> FoundReplica | None:
    """Return a replica of a revision that answers clients: not one behind a router."""
    for one in found:
        stamp = one.replica.stamp
        if stamp.revision == revision and record.is_direct(stamp.revision, stamp.replica):
            return one
    return None


@contextlib.contextmanager
def _led_to(found: FoundReplica | None, infrastructure: Infrastructure) -> Iterator[str | None]:
    if found is None:
        yield None
        return
    replica = found.replica
    port = PortMapping(local_port=None, container_port=replica.port)
    machine = infrastructure.machine(found.instance)
    with Forwarder(machine, [port], target=lambda _: (replica.address, replica.port)) as forwarder:
        yield f"http://127.0.0.1:{forwarder.ports[0].local_port}"


def _judged(evaluate: Evaluate, release: Release) -> Evaluation:
    judge: Any = evaluate
    if not isinstance(evaluate, Flow | Task):
        judge = task(name="evaluate", cache_policy=NO_CACHE)(judge)
    try:
        result = judge(release)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(cast("Awaitable[Evaluation | bool]", result)))
    except PrefectDstackError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's own code: what it cannot judge does not pass
        return Evaluation(passed=False, reason=f"it raised {type(error).__name__}: {error}")
    if isinstance(result, bool):
        return Evaluation(passed=result)
    if isinstance(result, Evaluation):
        return result
    raise UserError(
        f"evaluate: returned {type(result).__name__}; return prefect_dstack.Evaluation(passed=...) or a bool"
    )


async def _awaited(result: Awaitable[Evaluation | bool]) -> Evaluation | bool:
    return await result


def _publish(release: Release, evaluation: Evaluation) -> None:
    verdict = "passed" if evaluation.passed else "rejected"
    create_table_artifact(
        key=f"{release.service}-evaluation",
        table=evaluation.table or [{"score": evaluation.score, "passed": evaluation.passed}],
        description=f"{release.service}@{release.revision}: {verdict}. {evaluation.reason}".strip(),
        _sync=True,  # type: ignore[call-arg]
    )
