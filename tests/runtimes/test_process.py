"""Replicas without an image are processes of this machine: started, found again, read and removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from prefect_dstack.configurations import Environment, ServiceConfiguration, load_configuration
from prefect_dstack.domain.stamp import Stamp
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.local_machine import LocalMachine
from prefect_dstack.hosts.ports import REPLICA_PORTS
from prefect_dstack.runtimes.base import Launch, Replica, ReplicaStatus
from prefect_dstack.runtimes.process import ProcessRuntime
from tests.polling import wait_until
from tests.workloads import spec_of

MACHINE = LocalMachine()
SLEEP = "exec sleep 300"


def launch_of(directory: Path, *commands: str, stamp: Stamp | None = None, **keys: Any) -> Launch:
    environment = keys.pop("environment", Environment())
    configuration = load_configuration(
        {"type": "service", "port": 8000, "commands": list(commands), **keys},
        name="hello",
        directory=directory,
    )
    assert isinstance(configuration, ServiceConfiguration)
    return Launch(
        stamp=stamp or Stamp(service="hello", revision=3, replica=0, flow_run="first"),
        spec=spec_of(configuration, configuration.directory, environment),
    )


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[ProcessRuntime]:
    runtime = ProcessRuntime(tmp_path / "replicas")
    yield runtime
    for replica in runtime.replicas(MACHINE):
        runtime.remove(MACHINE, replica, grace=0)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.fixture
def start(runtime: ProcessRuntime, work: Path) -> Callable[..., Replica]:
    def start(*commands: str, **keys: Any) -> Replica:
        return runtime.launch(MACHINE, launch_of(work, *commands, **keys), lambda _: None)

    return start


def lines_of(runtime: ProcessRuntime, replica: Replica, at_least: int = 1) -> list[str]:
    """What it wrote, once that is so many lines."""

    def lines() -> list[str] | None:
        found = list(runtime.logs(MACHINE, replica))
        return found if len(found) >= at_least else None

    return wait_until(lines, 10, f"{at_least} lines of {replica.name}") or []


def running(runtime: ProcessRuntime, replica: Replica, restarts: int = 0) -> ReplicaStatus:
    def status() -> ReplicaStatus | None:
        known = supervisor.status(Path(replica.id))
        ready = known.state == "running" and known.restarts >= restarts
        return runtime.status(MACHINE, replica) if ready else None

    found = wait_until(status, 10, f"{replica.name} runs")
    assert found is not None
    return found


class TestLaunch:
    def test_gives_a_port_on_loopback_and_tells_the_program(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start('echo "$PORT $DSTACK_SERVICE_PORT"', SLEEP)

        assert (replica.name, replica.runtime, replica.address) == ("hello-3-0", "process", "127.0.0.1")
        assert replica.port in REPLICA_PORTS
        assert lines_of(runtime, replica) == [f"{replica.port} {replica.port}"]

    def test_tells_the_program_who_it_is(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start('echo "$DSTACK_RUN_NAME $DSTACK_REVISION $DSTACK_REPLICA_NUM"', SLEEP)

        assert lines_of(runtime, replica) == ["hello 3 0"]

    def test_gives_the_environment_of_the_configuration_and_little_else(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the deployer")
        monkeypatch.setenv("PREFECT_API_KEY", "of the deployer")
        monkeypatch.setenv("UV_CACHE_DIR", "/of/the/deployer")

        replica = start(
            "env",
            "echo end",
            SLEEP,
            environment=Environment(plain={"PLAIN": "1"}, secret={"TOKEN": SecretStr("2")}),
        )
        wait_until(lambda: "end" in lines_of(runtime, replica), 10, "it wrote its environment")
        given = dict(line.split("=", 1) for line in lines_of(runtime, replica) if "=" in line)

        assert (given["PLAIN"], given["TOKEN"], given["UV_CACHE_DIR"]) == ("1", "2", "/of/the/deployer")
        assert "of the deployer" not in given.values()

    def test_runs_the_commands_in_order_until_one_fails(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start("echo one", "cd /", "pwd", "false", "echo never")

        lines = lines_of(runtime, replica, 2)

        assert lines[:2] == ["one", "/"]
        assert "never" not in lines

    def test_starts_in_the_directory_of_the_configuration(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], work: Path
    ) -> None:
        replica = start("pwd", SLEEP)

        assert lines_of(runtime, replica) == [str(work)]

    def test_starts_in_the_working_directory_below_that(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], work: Path
    ) -> None:
        (work / "app").mkdir()

        replica = start("pwd", SLEEP, working_dir="app")

        assert lines_of(runtime, replica) == [str(work / "app")]

    def test_says_which_working_directory_is_missing(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], work: Path
    ) -> None:
        replica = start(SLEEP, working_dir="missing")

        assert str(work / "missing") in lines_of(runtime, replica)[0]

    @pytest.mark.parametrize("shell", ["sh", "bash"])
    def test_uses_the_shell_of_the_configuration(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], shell: str
    ) -> None:
        replica = start('echo "${BASH_VERSION:+bash}${BASH_VERSION:-sh}" | cut -c1-4', SLEEP, shell=shell)

        assert lines_of(runtime, replica)[0].startswith(shell)

    def test_refuses_a_shell_that_is_not_there(self, start: Callable[..., Replica]) -> None:
        with pytest.raises(ConfigurationError, match=r"shell: this machine has no /opt/no/such/sh"):
            start(SLEEP, shell="/opt/no/such/sh")

    def test_again_finds_the_first(self, runtime: ProcessRuntime, start: Callable[..., Replica]) -> None:
        first = start(SLEEP)
        running(runtime, first)
        pid = supervisor.status(Path(first.id)).pid

        again = start(SLEEP, stamp=Stamp(service="hello", revision=3, replica=0, flow_run="second"))

        assert again == first
        assert again.stamp.flow_run == "first"
        assert runtime.replicas(MACHINE) == [first]
        assert supervisor.status(Path(first.id)).pid == pid

    def test_of_many_at_once_gives_each_a_port(self, runtime: ProcessRuntime, work: Path) -> None:
        stamps = [Stamp(service="hello", revision=1, replica=number) for number in range(6)]

        with ThreadPoolExecutor(6) as pool:
            replicas = list(
                pool.map(
                    lambda stamp: runtime.launch(
                        MACHINE, launch_of(work, SLEEP, stamp=stamp), lambda _: None
                    ),
                    stamps,
                )
            )

        assert len({replica.port for replica in replicas}) == 6
        assert [replica.stamp for replica in runtime.replicas(MACHINE)] == stamps

    def test_after_a_killed_supervisor_ends_what_it_left(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], work: Path
    ) -> None:
        """What it left may hold the port."""
        script = "sh -c 'echo $$ > child; sleep 300; true'; true"
        replica = start(script)
        child = int(wait_until(lambda: (work / "child").exists() and (work / "child").read_text().strip()))
        (work / "child").unlink()
        kill_supervisor(runtime, replica)

        again = start(script)

        assert again.port == replica.port
        wait_until(lambda: not psutil.pid_exists(child), 5, "the child of the first is gone")
        running(runtime, again)


def kill_supervisor(runtime: ProcessRuntime, replica: Replica) -> None:
    os.kill(int((Path(replica.id) / "supervisor.lock").read_text()), signal.SIGKILL)
    wait_until(lambda: runtime.status(MACHINE, replica).state == "exited", 10, "it is known to be lost")


class TestStatus:
    def test_of_a_crash_loop_is_restarting(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start("exit 3")

        def restarting() -> ReplicaStatus | None:
            status = runtime.status(MACHINE, replica)
            return status if status.state == "restarting" else None

        status = wait_until(restarting, 10, "it waits for its restart")

        assert status is not None
        assert status.exit_code == 3
        assert status.restarts >= 1

    def test_comes_back_after_it_was_killed(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start(SLEEP)
        running(runtime, replica)
        pid = supervisor.status(Path(replica.id)).pid
        assert pid is not None

        os.kill(pid, signal.SIGKILL)

        assert running(runtime, replica, restarts=1).exit_code == -signal.SIGKILL

    def test_of_a_killed_supervisor_says_so(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start(SLEEP)
        running(runtime, replica)

        kill_supervisor(runtime, replica)

        assert runtime.status(MACHINE, replica).detail == "its supervisor was killed"

    def test_of_nothing_is_gone(self, runtime: ProcessRuntime, tmp_path: Path) -> None:
        replica = Replica(
            stamp=Stamp(service="other", revision=1, replica=0),
            runtime="process",
            id=str(tmp_path / "replicas" / "other-1-0"),
            address="127.0.0.1",
            port=20001,
        )

        assert runtime.status(MACHINE, replica).state == "gone"
        assert runtime.replicas(MACHINE) == []


class TestLogs:
    def test_has_the_last_lines(self, runtime: ProcessRuntime, start: Callable[..., Replica]) -> None:
        replica = start("seq 1 50", SLEEP)
        lines_of(runtime, replica, 50)

        assert list(runtime.logs(MACHINE, replica, tail=2)) == ["49", "50"]
        assert list(runtime.logs(MACHINE, replica, tail=0)) == []
        assert len(list(runtime.logs(MACHINE, replica, tail=1000))) == 50

    def test_keeps_lines_of_any_characters_whole(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start(r"printf 'form\ffeed\nnot \377 text\nwindows\r\nlast'", SLEEP)

        assert lines_of(runtime, replica, 4) == [
            "form\ffeed",
            "not \N{REPLACEMENT CHARACTER} text",
            "windows",
            "last",
        ]

    def test_joins_a_line_that_a_rotation_has_split(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start(SLEEP)
        (Path(replica.id) / "output.log.10").write_text("oldest\n")
        (Path(replica.id) / "output.log.2").write_text("older\nbegins he")
        (Path(replica.id) / "output.log.1").write_text("re\n")

        assert list(runtime.logs(MACHINE, replica)) == ["oldest", "older", "begins here"]

    def test_followed_has_every_line_to_the_last(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], work: Path
    ) -> None:
        replica = start(
            "trap 'printf last; exit 0' TERM",
            "printf 'begins '",
            "while [ ! -e go ]; do sleep 0.02; done",
            "echo ends",
            "while :; do sleep 0.02; done",
        )
        seen: list[str] = []
        wait_until(lambda: list(runtime.logs(MACHINE, replica)) == ["begins "], 10, "half a line is there")
        reader = threading.Thread(
            target=lambda: seen.extend(runtime.logs(MACHINE, replica, follow=True)), daemon=True
        )
        reader.start()

        (work / "go").touch()
        wait_until(lambda: list(runtime.logs(MACHINE, replica)) == ["begins ends"], 10, "the line is whole")
        supervisor.stop(Path(replica.id))
        reader.join(10)

        # The shell may say in between that its `sleep` was terminated.
        assert (seen[0], seen[-1]) == ("begins ends", "last")

    def test_followed_over_a_rotation_loses_nothing(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start(SLEEP)
        current = Path(replica.id) / "output.log"
        running(runtime, replica)
        current.write_text("first\n")
        lines = runtime.logs(MACHINE, replica, follow=True)
        assert next(lines) == "first"

        with current.open("a") as stream:
            stream.write("before the rotation\n")
        current.rename(current.with_name("output.log.1"))
        current.write_text("after it\n")

        assert [next(lines), next(lines)] == ["before the rotation", "after it"]
        supervisor.stop(Path(replica.id))
        assert list(lines) == []


class TestRemove:
    def test_leaves_no_process_and_no_file(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], tmp_path: Path
    ) -> None:
        replica = start("sleep 300 & echo $!", "wait")
        child = int(lines_of(runtime, replica)[0])

        runtime.remove(MACHINE, replica, grace=5)

        assert not psutil.pid_exists(child)
        assert runtime.replicas(MACHINE) == []
        assert [path.name for path in (tmp_path / "replicas").iterdir()] == [".lock"]

    def test_gives_a_program_that_its_shell_waits_for_time_to_finish(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], work: Path
    ) -> None:
        (work / "app.sh").write_text(
            "trap 'sleep 0.4; echo done > finished; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
        )
        replica = start("sh app.sh", "echo not reached")
        lines_of(runtime, replica)

        runtime.remove(MACHINE, replica, grace=5)

        assert (work / "finished").read_text() == "done\n"

    def test_kills_what_outlived_a_killed_supervisor(
        self, runtime: ProcessRuntime, start: Callable[..., Replica]
    ) -> None:
        replica = start("setsid sleep 300 & echo $!", "wait")
        child = int(lines_of(runtime, replica)[0])
        kill_supervisor(runtime, replica)
        assert psutil.pid_exists(child)

        runtime.remove(MACHINE, replica, grace=5)

        wait_until(lambda: not psutil.pid_exists(child), 5, "what left the group is gone")

    def test_leaves_a_replica_of_the_same_name_elsewhere_alone(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], work: Path, tmp_path: Path
    ) -> None:
        elsewhere = ProcessRuntime(tmp_path / "elsewhere")
        other = elsewhere.launch(MACHINE, launch_of(work, SLEEP), lambda _: None)
        with contextlib.ExitStack() as stack:
            stack.callback(elsewhere.remove, MACHINE, other, 0)
            running(elsewhere, other)
            replica = start(SLEEP)
            running(runtime, replica)

            runtime.remove(MACHINE, replica, grace=5)

            status = elsewhere.status(MACHINE, other)
            assert (status.state, status.restarts) == ("running", 0)

    def test_that_is_cut_off_leaves_a_replica_that_can_be_removed(
        self, runtime: ProcessRuntime, start: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replica = start(SLEEP)
        running(runtime, replica)
        (Path(replica.id) / "files").mkdir()
        with monkeypatch.context() as context:
            context.setattr(shutil, "rmtree", cut_off)
            with pytest.raises(KeyboardInterrupt):
                runtime.remove(MACHINE, replica, grace=0)

        assert runtime.replicas(MACHINE) == [replica]
        runtime.remove(MACHINE, replica, grace=0)
        assert not Path(replica.id).exists()

    def test_twice_is_no_error(self, runtime: ProcessRuntime, start: Callable[..., Replica]) -> None:
        replica = start(SLEEP)

        runtime.remove(MACHINE, replica, grace=0)
        runtime.remove(MACHINE, replica, grace=0)


def test_what_a_launch_that_was_cut_off_has_left_is_swept(
    runtime: ProcessRuntime, start: Callable[..., Replica]
) -> None:
    kept = start(SLEEP)
    cut = runtime.directory / "hello-4-0"
    cut.mkdir()
    (cut / "replica.new").write_text("{")

    assert runtime.sweep(dry_run=True) == ["hello-4-0"]
    assert cut.exists()
    assert runtime.sweep() == ["hello-4-0"]
    assert not cut.exists()
    assert runtime.replicas(MACHINE) == [kept]


def cut_off(*_: object, **__: object) -> None:
    """End as a process does that is killed."""
    raise KeyboardInterrupt


def test_says_on_which_other_ports_a_replica_listens(
    runtime: ProcessRuntime, start: Callable[..., Replica]
) -> None:
    code = "import socket, time; it = socket.create_server(('127.0.0.1', 0)); "
    code += "print(it.getsockname()[1], flush=True); time.sleep(300)"
    replica = start(f'exec python3 -c "{code}"')
    port = int(lines_of(runtime, replica)[0])

    assert runtime.listening_ports(replica) == [port]


def test_keeps_secrets_off_the_disk_and_command_lines(
    runtime: ProcessRuntime, start: Callable[..., Replica], tmp_path: Path
) -> None:
    secret = "hunter2-of-the-process-runtime"
    replica = start(
        'echo "length ${#TOKEN}"', SLEEP, environment=Environment(secret={"TOKEN": SecretStr(secret)})
    )
    assert lines_of(runtime, replica) == [f"length {len(secret)}"]

    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    command_lines = json.dumps([process.info["cmdline"] for process in psutil.process_iter(["cmdline"])])

    assert secret.encode() not in written
    assert secret not in command_lines
