"""Tasks that are processes of this machine: their ends, their nodes, what they bring back."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow

from prefect_dstack import Endpoint, deploy_service, reconcile_services, run_task, stop_service
from prefect_dstack.backends import local
from prefect_dstack.errors import (
    CapacityError,
    ConfigurationError,
    ConflictError,
    NoOfferError,
    NotFoundError,
    RunFailedError,
)
from prefect_dstack.services.runs import running
from prefect_dstack.services.runs.utilization import AcceleratorUse
from prefect_dstack.store.run_records import find_run, load_run
from tests.flows.conftest import get, hello
from tests.flows.killing import deploy_and_die, deploy_and_die_when
from tests.flows.seen import runs_of
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

# A worker says what it knows to the master, which says it on; both then end.
TALK = """
import os, socket
address = os.environ["DSTACK_MASTER_NODE_IP"], int(os.environ["TALK_PORT"])
if os.environ["DSTACK_NODE_RANK"] == "0":
    with socket.create_server(address) as server:
        connection, _ = server.accept()
        with connection:
            print("heard", connection.recv(100).decode())
else:
    while True:
        try:
            connection = socket.create_connection(address)
        except ConnectionRefusedError:
            continue
        break
    with connection:
        connection.sendall(f"rank {os.environ['DSTACK_NODE_RANK']}".encode())
"""


@pytest.fixture
def task(name: str, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Describes a task in a directory of its own, with `talk.py` beside it."""
    (tmp_path / "talk.py").write_text(TALK)

    def task(*commands: str, **keys: Any) -> dict[str, Any]:
        written = {"commands": list(commands)} if commands else {}
        return {"type": "task", "name": name, **written, **keys}

    return task


@pytest.fixture
def run(
    tmp_path: Path, home: Home, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs a task from its file; the test fails if anything of it stays."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "task.dstack.yml"

    def run(configuration: dict[str, Any], **options: Any) -> Any:
        file.write_text(yaml.safe_dump(configuration))
        return run_task(file, **options)

    return run


def written(server: PrefectServer, name: str) -> list[str]:
    """The log of the last flow run of a task."""
    *_, last = runs_of(server, "run", name)

    def lines() -> list[str]:
        found = server.ask("/logs/filter", logs={"flow_run_id": {"any_": [last["id"]]}}, sort="TIMESTAMP_ASC")
        return [line["message"] for line in found]

    return wait_until(lambda: [] if not any("done after" in line for line in lines()) else lines(), 60)


def test_its_exit_code_is_the_result(
    run: Callable[..., Any], task: Callable[..., Any], name: str, home: Home
) -> None:
    with pytest.raises(RunFailedError, match=rf"^{name} \(run 1\): {name}-1-0 exited with code 3$") as caught:
        run(task("exit 3"))
    assert caught.value.exit_code == 3
    record = load_run(name)
    assert (record.state, record.exit_code, record.working) == ("failed", 3, None)
    assert not home.leftovers()

    assert run(task("true")).number == 2
    assert (load_run(name).state, load_run(name).exit_code) == ("done", 0)
    assert not list(home.state.glob("bundles/[!.]*")), "no copy of its files is left"


def test_one_that_is_killed_says_by_what(run: Callable[..., Any], task: Callable[..., Any]) -> None:
    with pytest.raises(RunFailedError, match="was ended by signal 9") as caught:
        run(task("kill -9 $$"))
    assert caught.value.exit_code == 137


def test_it_may_take_no_longer_than_it_says(
    run: Callable[..., Any], task: Callable[..., Any], name: str
) -> None:
    # It writes all the time, which must not keep anybody from looking at the clock.
    with pytest.raises(RunFailedError, match="longer than max_duration, 1 s") as caught:
        run(task("while :; do echo busy; done", max_duration=1))
    assert caught.value.exit_code == 124
    assert load_run(name).exit_code == 124


def test_nodes_know_each_other_and_talk(
    run: Callable[..., Any], task: Callable[..., Any], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    facts = "echo $DSTACK_NODE_RANK of $DSTACK_NODES_NUM at $DSTACK_MASTER_NODE_IP"
    run(
        task(
            facts,
            f"{sys.executable} talk.py",
            nodes=2,
            env={"TALK_PORT": str(home.port)},
        )
    )
    lines = written(prefect_server, name)
    assert {"[0] 0 of 2 at 127.0.0.1", "[1] 1 of 2 at 127.0.0.1", "[0] heard rank 1"} <= set(lines)


def test_groups_run_commands_of_their_own_and_workers_may_come_first(
    run: Callable[..., Any],
    task: Callable[..., Any],
    name: str,
    tmp_path: Path,
    prefect_server: PrefectServer,
) -> None:
    seen = tmp_path / "seen"
    workers = [f"echo worker $DSTACK_NODE_RANK >> {seen}", "sleep 300"]
    run(
        task(
            groups=[
                {"name": "head", "commands": [f"test -e {seen}", f"echo head >> {seen}"]},
                {"name": "workers", "nodes": 2, "commands": [*workers]},
            ],
            startup_order="workers-first",
            stop_criteria="master-done",
        )
    )
    lines = seen.read_text().splitlines()
    assert sorted(lines[:-1]) == ["worker 1", "worker 2"]
    assert lines[-1] == "head"


def test_a_node_that_fails_ends_them_all(
    run: Callable[..., Any], task: Callable[..., Any], name: str
) -> None:
    command = 'if [ "$DSTACK_NODE_RANK" = 1 ]; then exit 5; else sleep 300; fi'
    with pytest.raises(RunFailedError, match=f"{name}-1-1 exited with code 5") as caught:
        run(task(command, nodes=2))
    assert caught.value.exit_code == 5


def test_artifacts_come_back(
    run: Callable[..., Any], task: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    result = run(
        task("mkdir -p out/deep", "echo model > out/deep/model", "echo text > text"),
        artifacts={"out": str(tmp_path / "back" / "out"), "text": "text.txt"},
    )
    assert (tmp_path / "back/out/deep/model").read_text() == "model\n"
    assert (tmp_path / "text.txt").read_text() == "text\n"
    assert result.artifacts == [str(tmp_path / "back" / "out"), "text.txt"]

    with pytest.raises(NotFoundError, match=f"{name}-2-0: there is no nothing in it"):
        run(task("true"), artifacts={"nothing": "nothing"})
    assert load_run(name).state == "failed"


def test_a_secret_of_its_environment_is_in_no_log(
    run: Callable[..., Any],
    task: Callable[..., Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    prefect_server: PrefectServer,
) -> None:
    monkeypatch.setenv("PASSPHRASE", "correct-horse-battery")
    run(task("echo ${#PASSPHRASE} characters", env=["PASSPHRASE"]))
    lines = written(prefect_server, name)
    assert "21 characters" in lines
    assert not any("correct-horse" in line for line in lines)
    assert "correct-horse" not in str(prefect_server.ask("/block_documents/filter", include_secrets=True))
    (flow_run,) = runs_of(prefect_server, "run", name)
    assert "correct-horse" not in str(flow_run)


class TestWithoutCapacity:
    def test_it_is_asked_for_again_until_it_is_there(
        self,
        run: Callable[..., Any],
        task: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        no_capacity: Callable[[int], None],
    ) -> None:
        no_capacity(2)
        run(task("true", retry={"on_events": ["no-capacity"], "duration": "1m"}))

    def test_no_longer_than_it_says(
        self, run: Callable[..., Any], task: Callable[..., Any], no_capacity: Callable[[int], None]
    ) -> None:
        no_capacity(1000)
        with pytest.raises(CapacityError):
            run(task("true", retry={"on_events": ["no-capacity"], "duration": 1}))

    def test_not_at_all_without_a_word(
        self, run: Callable[..., Any], task: Callable[..., Any], no_capacity: Callable[[int], None]
    ) -> None:
        no_capacity(1)
        with pytest.raises(CapacityError):
            run(task("true"))
        with pytest.raises(NoOfferError, match="memory"):
            run(task("true", resources={"memory": "100TB"}, retry=True))

    def test_of_two_that_wait_the_higher_priority_is_served_first(
        self,
        task: Callable[..., Any],
        name: str,
        prefect_server: PrefectServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from prefect_dstack.backends.local import LocalBackend

        monkeypatch.setattr(running, "RETRY_PAUSE", 4.0)
        provision, free, served = LocalBackend.provision, threading.Event(), []

        def one_at_a_time(self: Any, offers: Any, stamp: Any, *others: Any) -> Any:
            if not free.is_set():
                raise CapacityError("this machine is full")
            free.clear()
            served.append(stamp.service)
            return provision(self, offers, stamp, *others)

        monkeypatch.setattr(LocalBackend, "provision", one_at_a_time)

        def tried(which: str) -> datetime | None:
            found = find_run(f"{name}-{which}")
            return None if found is None else found.tried_at

        def low_has_tried_after_high() -> bool:
            low, high = tried("low"), tried("high")
            return low is not None and high is not None and low > high

        with ThreadPoolExecutor(2) as pool:
            keys = {"retry": True, "commands": ["true"]}
            done = [pool.submit(run_task, {**task(), **keys, "name": f"{name}-low", "priority": 10})]
            wait_until(lambda: tried("low"), 60, "one waits")
            done.append(pool.submit(run_task, {**task(), **keys, "name": f"{name}-high", "priority": 90}))
            wait_until(low_has_tried_after_high, 60, "it is the other's turn", interval=0.01)
            for _ in done:
                free.set()
                wait_until(lambda: not free.is_set(), 60, "one of them has a machine")
            assert {future.result().exit_code for future in done} == {0}
        assert served == [f"{name}-high", f"{name}-low"]

    @pytest.fixture
    def no_capacity(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Lets this machine be full so many times, as only a cloud can be."""
        from prefect_dstack.backends.local import LocalBackend

        monkeypatch.setattr(running, "RETRY_PAUSE", 0.1)
        provision = LocalBackend.provision

        def no_capacity(times: int) -> None:
            left = iter(range(times))

            def full(self: Any, *arguments: Any, **options: Any) -> Any:
                if next(left, None) is not None:
                    raise CapacityError("this machine is full")
                return provision(self, *arguments, **options)

            monkeypatch.setattr(LocalBackend, "provision", full)

        return no_capacity


def test_a_flow_trains_then_deploys(
    task: Callable[..., Any],
    name: str,
    tmp_path: Path,
    home: Home,
    prefect_server: PrefectServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    @flow
    def train_and_deploy() -> Endpoint:
        run_task(task("echo trained > model"), artifacts={"model": str(tmp_path / "model")})
        greeting = (tmp_path / "model").read_text().strip()
        return deploy_service(hello(f"{name}-served", env={"GREETING": greeting}))

    endpoint = train_and_deploy()
    assert "trained" in str(get(endpoint.url))
    stop_service(f"{name}-served")


def test_names_are_given_once(
    run: Callable[..., Any], deploy: Callable[..., Endpoint], task: Callable[..., Any], name: str
) -> None:
    deploy()
    with pytest.raises(ConflictError, match="is the name of a service"):
        run(task("true"))
    with pytest.raises(ConfigurationError, match="is a service, and this takes a task"):
        run(hello(name))


@pytest.mark.slow
def test_what_a_killed_run_has_left_is_removed(
    task: Callable[..., Any], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    def running() -> bool:
        record = find_run(name)
        return record is not None and record.state == "running"

    deploy_and_die_when(task("sleep 300", nodes=3), running)
    assert len(list(home.state.glob("replicas/*/"))) == 3

    assert [line for line in reconcile_services() if name in line] == [
        f"{name}: take down what run 1 has left"
    ]
    assert not home.leftovers()
    assert not [line for line in reconcile_services(dry_run=True) if name in line]
    assert (load_run(name).state, load_run(name).working) == ("failed", None)
    (flow_run,) = runs_of(prefect_server, "run", name)
    assert flow_run["state"]["type"] == "CRASHED"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_run_that_was_killed_at_any_task_has_left_is_removed(
    task: Callable[..., Any], name: str, home: Home, prefect_server: PrefectServer
) -> None:
    configuration = task("true", nodes=2)
    for number in itertools.count(1):
        if not deploy_and_die(configuration, number):
            break
        reconcile_services()
        assert not home.leftovers(), f"after it was killed at task {number}"
        assert load_run(name).working is None
    # Each node has a machine, is started, and removed.
    assert number > 6
    assert load_run(name).state == "done"


@pytest.mark.slow
def test_a_name_is_free_as_soon_as_its_run_was_killed(
    run: Callable[..., Any], task: Callable[..., Any], name: str, home: Home
) -> None:
    deploy_and_die_when(task("sleep 300"), lambda: getattr(find_run(name), "state", "") == "running")
    assert run(task("true")).number == 2


DRIVER = """#!/bin/sh
case "$1" in
    *utilization*) echo "GPU-1, $(cat {used})" ;;
    *) echo "GPU-1, NVIDIA L4, 23034, 8.9" ;;
esac
"""


@pytest.fixture
def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Holds how much the only GPU of this machine is used, for which a stand-in for its driver answers."""
    used, programs = tmp_path / "used", tmp_path / "programs"
    programs.mkdir()
    driver = programs / "nvidia-smi"
    driver.write_text(DRIVER.replace("{used}", str(used)))
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    # Five minutes, the shortest window there is, last three seconds.
    faster = partial(AcceleratorUse, clock=lambda: time.monotonic() * 100)
    monkeypatch.setattr(running, "AcceleratorUse", faster)
    local._gpus.cache_clear()
    yield used
    local._gpus.cache_clear()


def test_a_run_that_does_not_use_its_gpu_ends(
    used: Path, run: Callable[..., Any], task: Callable[..., Any], name: str
) -> None:
    policy = {"min_gpu_utilization": 10, "time_window": "5m"}
    keys = {"resources": {"gpu": 1}, "utilization_policy": policy}
    used.write_text("80")
    assert run(task("sleep 6", **keys)).exit_code == 0
    used.write_text("4")
    why = r"every GPU of this machine was used less than 10 % for 300 s \(utilization_policy\)"
    with pytest.raises(RunFailedError, match=why):
        run(task("sleep 300", **keys))

    assert load_run(name).state == "failed"
    with pytest.raises(ConfigurationError, match="is for runs with a GPU"):
        run(task("true", utilization_policy=policy))
