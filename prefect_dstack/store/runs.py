"""Which flow runs are still at work: what they hold must be left alone."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Crashed, Failed

from prefect_dstack.domain.record import LOST, Deploying
from prefect_dstack.hosts.processes import is_at_work, started_after_boot
from prefect_dstack.store.clients import api_client

__all__ = [
    "close_run",
    "deploying",
    "fail_paused",
    "has_died",
    "is_known",
    "is_over",
    "is_paused",
    "is_this_process",
    "name_of_run",
    "rename_run",
    "resume_paused",
    "tag_run",
]

# So many heartbeats may be missing before a run counts as lost.
MISSED_HEARTBEATS = 3
# A clock that was set can make the latest of them look old.
HEARTBEATS_READ = 10
# So many more of a process that is at work must be missing, by a clock that nobody sets.
WATCHED_HEARTBEATS = 1.5
_silent_since: dict[str, float] = {}

# Several services are repaired at once by one flow run, and an update replaces all tags.
_tagging = threading.Lock()


def is_over(flow_run: str, heartbeat: float | None = None) -> bool:
    """Return whether a flow run will do nothing any more.

    A run that its worker left behind stays `Running` for ever; its heartbeats, however, have stopped.

    Args:
        flow_run: The id of the flow run.
        heartbeat: Seconds between its heartbeats, which may be others than ours; None: ours.

    Returns:
        Whether it has ended, was deleted, or has been silent for three heartbeats.
    """
    return _look(flow_run, _frequency(heartbeat)) != "at work"


def _look(flow_run: str, frequency: float | None) -> Literal["at work", "silent", "ended"]:
    with api_client() as client:
        run = _read(client, flow_run)
        if run is None or run.state is None or run.state.is_final():
            return "ended"
        return "silent" if _is_silent(client, run, frequency) else "at work"


def _frequency(heartbeat: float | None) -> float | None:
    return heartbeat or get_current_settings().flows.heartbeat_frequency


def _is_silent(client: SyncPrefectClient, run: FlowRun, frequency: float | None) -> bool:
    """Return whether heartbeats of a run that is at work have stopped, by the clock of the API alone."""
    if run.state is None or frequency is None or not (run.state.is_running() or run.state.is_cancelling()):
        return False
    answer = client.request(
        "POST",
        "/events/filter",
        json={
            "filter": {
                "event": {"name": ["prefect.flow-run.heartbeat"]},
                "resource": {"id": [f"prefect.flow-run.{run.id}"]},
            },
            "limit": HEARTBEATS_READ,
        },
    )
    silent_since = _answered_at(answer) - timedelta(seconds=frequency * MISSED_HEARTBEATS)
    heartbeats = [datetime.fromisoformat(event["received"]) for event in answer.json()["events"]]
    return all(sign < silent_since for sign in (*heartbeats, run.state.timestamp))


def _answered_at(response: httpx.Response) -> datetime:
    """Return when the API answered, by its own clock."""
    written = response.headers.get("Date")
    return datetime.now(UTC) if written is None else parsedate_to_datetime(written)


def is_known(flow_run: str) -> bool:
    """Return whether the Prefect API has ever had a flow run, and has it still.

    Args:
        flow_run: The id of the flow run.

    Returns:
        Whether it is there; if not, it may be that of another Prefect API.
    """
    with api_client() as client:
        return _read(client, flow_run) is not None


def name_of_run(flow_run: str) -> str:
    """Return what people call a flow run.

    Args:
        flow_run: The id of the flow run.

    Returns:
        `flow run 'deploy shop'`; with its id if it has no name any more.
    """
    with api_client() as client:
        run = _read(client, flow_run)
        return f"flow run {flow_run if run is None else repr(run.name)}"


def is_paused(flow_run: str) -> bool:
    """Return whether a flow run waits for a person.

    Args:
        flow_run: The id of the flow run.

    Returns:
        Whether it is paused.
    """
    with api_client() as client:
        run = _read(client, flow_run)
        return run is not None and run.state is not None and run.state.is_paused()


def close_run(flow_run: str) -> None:
    """Mark a flow run that was found dead as crashed in the Prefect API; nobody else would.

    Args:
        flow_run: The id of the flow run.
    """
    with api_client() as client:
        run = _read(client, flow_run)
        if run is not None and not (run.state and (run.state.is_final() or run.state.is_cancelling())):
            client.set_flow_run_state(run.id, Crashed(message=f"Found dead: {LOST}."), force=True)


def fail_paused(flow_run: str, message: str) -> None:
    """End a flow run that is suspended, as what it waited for will not come; others are left alone.

    Args:
        flow_run: The id of the flow run.
        message: Why, in one line.
    """
    with api_client() as client:
        run = _read(client, flow_run)
        if run is not None and run.state is not None and run.state.is_paused():
            client.set_flow_run_state(run.id, Failed(name="Rejected", message=message), force=True)


def resume_paused(flow_run: str) -> None:
    """Resume a suspended flow run; others are left alone.

    Args:
        flow_run: The id of the flow run.
    """
    with api_client() as client:
        run = _read(client, flow_run)
        if run is not None and run.state is not None and run.state.is_paused():
            client.resume_flow_run(run.id)


def tag_run(flow_run: FlowRun, tag: str) -> None:
    """Add a tag to a flow run, by which people find it in the Prefect UI.

    Args:
        flow_run: The flow run; the tag is added here too.
        tag: The tag.
    """
    with _tagging:
        if tag in flow_run.tags:
            return
        flow_run.tags = [*flow_run.tags, tag]
        with api_client() as client, contextlib.suppress(httpx.HTTPError):
            client.update_flow_run(flow_run.id, tags=flow_run.tags)


def rename_run(flow_run: str, name: str) -> None:
    """Name a flow run by what it has found to do.

    Args:
        flow_run: The id of the flow run.
        name: Its name from now on.
    """
    with api_client() as client, contextlib.suppress(httpx.HTTPError):
        client.update_flow_run(UUID(flow_run), name=name)


def deploying(revision: int | None, flow_run: str, lease: str) -> Deploying:
    """Return a description of the deployment that this process does.

    Args:
        revision: The revision that is deployed; None: a stop.
        flow_run: The id of the flow run.
        lease: The id of the lease with which it holds the service's lock.

    Returns:
        Enough to tell later, from anywhere, whether it is still at work.
    """
    me = psutil.Process(os.getpid())
    return Deploying(
        revision=revision,
        flow_run=flow_run,
        lease=lease,
        machine=_machine(),
        process=me.pid,
        process_started=started_after_boot(me),
        heartbeat=get_current_settings().flows.heartbeat_frequency,
    )


def is_this_process(deployment: Deploying) -> bool:
    """Return whether a deployment is done by this very process.

    Args:
        deployment: As `deploying` described it.

    Returns:
        Whether it is.
    """
    return deployment.machine == _machine() and deployment.process == os.getpid()


def has_died(deployment: Deploying) -> bool:
    """Return whether a deployment will do nothing any more.

    Args:
        deployment: As `deploying` described it.

    Returns:
        Whether its process is gone, if it ran on this machine; else whether its flow run is over. A process
        that is there is watched before its silence counts, so that only one who asks again finds out.
    """
    if deployment.machine != _machine() or deployment.process is None:
        return is_over(deployment.flow_run, deployment.heartbeat)
    started = deployment.process_started
    if started is None or not is_at_work(deployment.process, started):
        return True
    frequency = _frequency(deployment.heartbeat)
    seen = _look(deployment.flow_run, frequency)
    if seen != "silent" or frequency is None:
        _silent_since.pop(deployment.flow_run, None)
        return seen == "ended"
    # A machine that was asleep, or whose clock was set, has sent none and goes on with what it did.
    since = _silent_since.setdefault(deployment.flow_run, time.monotonic())
    return time.monotonic() - since > frequency * WATCHED_HEARTBEATS


def _machine() -> str:
    """Return where process ids mean the same as here: containers with the host's name have their own."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def _read(client: SyncPrefectClient, flow_run: str) -> FlowRun | None:
    with contextlib.suppress(ObjectNotFound, ValueError):
        return client.read_flow_run(UUID(flow_run))
    return None
