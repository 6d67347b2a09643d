"""Which flow runs are at work: told by their process where that can be seen, else by the Prefect API."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from uuid import UUID

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, Running

from prefect_dstack.domain.record import LOST, Deploying
from prefect_dstack.hosts.processes import started_after_boot
from prefect_dstack.store import runs
from tests.polling import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


@flow
def something() -> None:
    """A flow whose runs are made by hand."""


def new_run() -> str:
    """The id of a flow run that is running, and was left by its process."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(something)
        client.set_flow_run_state(run.id, Running(), force=True)
    return str(run.id)


@pytest.fixture
def zombie() -> Iterator[psutil.Process]:
    """A process that has ended, and that nobody has asked how."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    process = psutil.Process(child.pid)
    process.create_time()
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, 10)
    yield process
    child.wait()


def by(process: psutil.Process, flow_run: str) -> Deploying:
    return Deploying(
        revision=1,
        flow_run=flow_run,
        machine=runs.deploying(1, flow_run, "").machine,
        process=process.pid,
        process_started=started_after_boot(process),
    )


def test_a_process_that_has_ended_and_was_not_asked_how_counts_as_dead(zombie: psutil.Process) -> None:
    assert runs.has_died(by(zombie, new_run()))


def test_a_process_that_is_at_work_is_believed_until_its_run_has_ended() -> None:
    mine = by(psutil.Process(), new_run())
    assert not runs.has_died(mine)

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(mine.flow_run), Completed(), force=True)
    assert runs.has_died(mine)


def test_another_process_with_the_same_id_is_not_the_one_that_was_there() -> None:
    mine = by(psutil.Process(), new_run())
    assert mine.process_started is not None

    assert runs.has_died(mine.model_copy(update={"process_started": mine.process_started - 1000}))


def test_a_container_with_the_name_of_this_machine_has_processes_of_its_own() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare")
    script = (
        "import sys; from prefect_dstack.store import runs\n"
        "print(runs.deploying(1, sys.argv[1], '').model_dump_json())"
    )
    container = [unshare, "--pid", "--fork", "--mount-proc", sys.executable, "-c", script, new_run()]
    said = subprocess.run(container, check=True, capture_output=True, text=True).stdout

    inside = Deploying.model_validate_json(said)

    assert inside.process is not None
    assert inside.process < 10, "it counts its own"
    assert not runs.has_died(inside)


def test_how_long_a_run_may_be_silent_is_what_it_has_said_and_not_what_we_do() -> None:
    elsewhere = Deploying(revision=1, flow_run=new_run(), machine="elsewhere", process=1)
    often, seldom = (elsewhere.model_copy(update={"heartbeat": seconds}) for seconds in (0.1, 3600.0))

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 3600}):
        wait_until(lambda: runs.has_died(often), 10, "three of its heartbeats are missing")
        assert not runs.has_died(seldom)


def test_what_a_deployment_notes_of_its_heartbeats_is_what_its_run_sends() -> None:
    seen: list[Deploying] = []

    @flow
    def deployment() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append(runs.deploying(1, str(context.flow_run.id), "lease"))

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 77}):
        deployment()
    assert [it.heartbeat for it in seen] == [77]


def test_a_dead_run_is_closed_and_one_that_has_ended_is_left_as_it_was() -> None:
    dead, done = new_run(), new_run()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(done), Completed(), force=True)
        for run in (dead, done):
            runs.close_run(run)
        states = [client.read_flow_run(UUID(run)).state for run in (dead, done)]
    assert [state.type.value for state in states if state] == ["CRASHED", "COMPLETED"]
    assert states[0] is not None
    assert LOST in (states[0].message or "")
