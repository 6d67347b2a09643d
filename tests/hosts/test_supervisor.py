"""A supervised program comes back after a crash, rotates its output, and ends with all that it started."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr, ValidationError

from prefect_dstack.errors import HostError
from prefect_dstack.hosts import supervisor
from prefect_dstack.hosts.supervisor import Program, ProgramStatus
from tests.polling import wait_until

SLEEP = "exec sleep 300"


class Supervised:
    """A shell script under supervision, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.work = directory.parent

    def program(self, script: str, **fields: object) -> Program:
        environment = {"PATH": os.environ["PATH"], "WORK": str(self.work)}
        return Program.model_validate(
            {
                "arguments": ["/bin/sh", "-c", script],
                "environment": environment,
                "working_directory": self.work,
                "grace": 5,
                **fields,
            }
        )

    def start(self, script: str, **fields: object) -> None:
        supervisor.start(self.directory, self.program(script, **fields))

    @property
    def status(self) -> ProgramStatus:
        return supervisor.status(self.directory)

    def running(self, after: int = 0) -> ProgramStatus:
        """Its status, once it runs and was restarted at least so often."""
        wait_until(lambda: self.status.state == "running" and self.status.restarts >= after, 10, "it runs")
        return self.status

    def said(self, text: str) -> str:
        """What it wrote, once that has the text."""
        wait_until(lambda: text in self.output, 10, f"it wrote {text!r}")
        return self.output

    @property
    def output(self) -> str:
        path = self.directory / "output.log"
        return path.read_text() if path.exists() else ""

    @property
    def pid(self) -> int:
        return int((self.directory / "supervisor.lock").read_text())

    def stop(self, grace: float | None = None) -> None:
        supervisor.stop(self.directory, grace)


def lives(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def pid_in(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text().strip(), 10, f"{path.name} is written"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Supervised]]:
    made: list[Supervised] = []

    def new(name: str = "program") -> Supervised:
        made.append(Supervised(tmp_path / name))
        return made[-1]

    yield new
    for it in made:
        it.stop(grace=0)


@pytest.fixture
def it(make: Callable[[str], Supervised]) -> Supervised:
    return make("program")


class TestStart:
    def test_runs_in_a_group_and_a_session_of_its_own(self, it: Supervised) -> None:
        it.start(SLEEP)

        pid = it.running().pid

        assert pid is not None
        assert os.getpgid(pid) == os.getsid(pid) == pid
        assert os.getsid(it.pid) != os.getsid(0)
        assert psutil.Process(pid).cwd() == str(it.work)

    def test_outlives_the_process_that_started_it(self, it: Supervised) -> None:
        code = (
            "import sys; from pathlib import Path; from prefect_dstack.hosts import supervisor\n"
            "supervisor.start(Path(sys.argv[1]), supervisor.Program.model_validate_json(sys.stdin.read()))"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(it.directory)],
            input=it.program(SLEEP).model_dump_json().encode(),
            check=True,
        )

        assert it.running().pid is not None
        assert psutil.Process(it.pid).ppid() != os.getpid()

    def test_has_no_other_environment_than_its_own(
        self, it: Supervised, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SURROUNDING", "leaks")

        it.start("env; " + SLEEP, environment={"PATH": os.environ["PATH"], "OWN": "value"})

        assert "OWN=value" in it.said("OWN=")
        assert "leaks" not in it.output

    def test_again_finds_the_first(self, it: Supervised) -> None:
        it.start(SLEEP)
        first = it.running()

        it.start("echo another")

        assert it.status == first

    def test_at_once_from_many_sides_runs_one(self, it: Supervised) -> None:
        program = it.program("echo started; " + SLEEP)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: supervisor.start(it.directory, program), range(8)))

        status = it.running()
        it.said("started")

        assert it.status == status
        assert it.output.count("started") == 1
        assert psutil.Process(it.pid).children() == [psutil.Process(status.pid)]

    def test_after_a_stop_starts_afresh(self, it: Supervised) -> None:
        it.start("echo first; exit 3")
        wait_until(lambda: it.status.restarts >= 1, 10, "it was restarted")
        it.stop()

        it.start(SLEEP)

        assert it.running().restarts == 0

    def test_of_a_program_that_does_not_exist_says_so_in_its_output(self, it: Supervised) -> None:
        it.start("", arguments=["/no/such/program"])

        assert "No such file" in it.said("cannot start")
        assert it.status.exit_code == 127

    def test_in_a_directory_that_cannot_be_made_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        program = Supervised(tmp_path / "file").program(SLEEP)

        with pytest.raises((HostError, OSError)):
            supervisor.start(tmp_path / "file" / "program", program)

    def test_refuses_a_program_without_a_command(self, it: Supervised) -> None:
        with pytest.raises(ValidationError, match="arguments"):
            it.program("", arguments=[])


class TestRestart:
    def test_brings_back_what_was_killed(self, it: Supervised) -> None:
        it.start(SLEEP)
        first = it.running().pid
        assert first is not None

        os.kill(first, signal.SIGKILL)
        again = it.running(after=1)

        assert again.pid not in (None, first)
        assert again.exit_code == -signal.SIGKILL

    def test_brings_back_what_ended_well(self, it: Supervised) -> None:
        it.start("exit 0")

        wait_until(lambda: it.status.restarts >= 2, 10, "it was restarted twice")
        assert it.status.exit_code == 0

    def test_leaves_nothing_of_the_attempt_before(self, it: Supervised) -> None:
        """Else a child that outlived its parent holds the port that the next attempt wants."""
        it.start('sleep 300 & echo $! >> "$WORK/children"; sleep 0.1; exit 1')

        wait_until(lambda: it.status.restarts >= 2, 10, "it was restarted twice")

        earlier = [int(line) for line in (it.work / "children").read_text().split()][:2]
        wait_until(lambda: not any(map(lives, earlier)), 5, "children of earlier attempts are gone")

    def test_waits_longer_each_time(self, it: Supervised) -> None:
        it.start('date +%s.%N >> "$WORK/starts"; exit 1')

        wait_until(lambda: it.status.restarts >= 4, 20, "it was restarted four times")

        starts = [float(line) for line in (it.work / "starts").read_text().split()]
        pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
        assert pauses[2] > pauses[0] * 2

    def test_is_told_while_it_waits(self, it: Supervised) -> None:
        it.start("exit 7")

        # From the third restart on it waits for long enough to look twice.
        wait_until(lambda: it.status.restarts >= 3 and it.status.state == "waiting", 10, "it waits")
        status = it.status

        assert (status.exit_code, status.pid, status.alive) == (7, None, True)


class TestOutput:
    def test_has_both_streams_in_order(self, it: Supervised) -> None:
        it.start("echo one; echo two >&2; echo three; " + SLEEP)

        assert it.said("three").splitlines() == ["one", "two", "three"]

    def test_is_rotated_and_bounded(self, it: Supervised) -> None:
        it.start("seq 1 60000; " + SLEEP, log_bytes=100_000, log_files=2)
        it.said("60000\n")

        logs = sorted(it.directory.glob("output.log*"), reverse=True)
        kept = b"".join(path.read_bytes() for path in logs).decode().splitlines()[1:]

        assert [path.name for path in logs] == ["output.log.2", "output.log.1", "output.log"]
        assert all(path.stat().st_size <= 100_000 for path in logs)
        assert kept == [str(number) for number in range(60001 - len(kept), 60001)]

    def test_is_for_its_owner_alone(self, it: Supervised) -> None:
        it.start("echo written; " + SLEEP)
        it.said("written")

        assert it.directory.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.stat().st_mode & 0o077 for path in it.directory.iterdir()} == dict.fromkeys(
            ["output.log", "output.times", "status.json", "supervisor.lock"], 0
        )

    def test_on_a_full_disk_is_lost_but_the_program_goes_on(self, it: Supervised) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        it.directory.mkdir()
        (it.directory / "output.log").symlink_to("/dev/full")

        it.start('echo lost; touch "$WORK/went-on"; ' + SLEEP)

        wait_until((it.work / "went-on").exists, 10, "it went on")
        assert it.running().restarts == 0


class TestStop:
    def test_asks_first_and_lets_it_finish(self, it: Supervised) -> None:
        it.start("trap 'sleep 0.3; echo finished; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
        it.said("ready")

        it.stop()

        assert "finished" in it.output
        assert it.status.state == "stopped"

    def test_lets_the_children_of_a_shell_finish_too(self, it: Supervised) -> None:
        """A shell that waits for a program ends at once on SIGTERM, and is the leader of the group."""
        child = "trap 'sleep 0.5; echo child finished; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
        it.start(f'sh -c "{child}"; true')
        it.said("ready")

        it.stop()

        assert "child finished" in it.output

    def test_kills_the_whole_group_after_the_grace_period(self, it: Supervised) -> None:
        it.start(
            """trap '' TERM; sh -c 'trap "" TERM; echo $$ > "$WORK/child"; sleep 300; true' & """
            "echo ready; while :; do sleep 1; done"
        )
        leader, child = it.running().pid, pid_in(it.work / "child")
        assert leader is not None
        it.said("ready")

        it.stop(grace=0.2)

        assert not lives(leader)
        assert not lives(child)
        assert it.status.state == "stopped"

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
    def test_kills_what_left_the_group(self, it: Supervised) -> None:
        inner = 'echo $$ > "$WORK/stray"; setsid sleep 300 & echo $! > "$WORK/grandchild"; wait'
        it.start(f"setsid sh -c '{inner}' & {SLEEP}")
        strays = [pid_in(it.work / "stray"), pid_in(it.work / "grandchild")]
        assert all(map(lives, strays))

        it.stop()

        assert not any(map(lives, strays))

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
    def test_leaves_what_it_has_started_under_a_supervisor_of_its_own(
        self, it: Supervised, make: Callable[[str], Supervised]
    ) -> None:
        other = make("other")
        code = (
            "import pathlib, time; from prefect_dstack.hosts import supervisor;"
            f"supervisor.start(pathlib.Path({str(other.directory)!r}),"
            f" supervisor.Program.model_validate_json({other.program(SLEEP).model_dump_json()!r}));"
            "time.sleep(300)"
        )
        supervisor.start(
            it.directory,
            it.program("").model_copy(update={"arguments": [sys.executable, "-c", code]}),
        )
        child = other.running().pid

        began = time.monotonic()
        it.stop()

        assert time.monotonic() - began < it.program("").grace
        assert child is not None
        assert lives(child)
        assert (other.status.state, other.status.pid) == ("running", child)

    def test_waits_for_nobody_who_has_ended_already(self, it: Supervised) -> None:
        # The child of one that left the group ends, and is not asked how.
        code = (
            "import os, time\n"
            "child = os.fork() or os._exit(0)\n"
            "os.setsid()\n"
            "open(os.environ['WORK'] + '/ready', 'w').write(str(child))\n"
            "time.sleep(300)"
        )
        it.start(f'{sys.executable} -S -c "{code}" & exec sleep 300', grace=60)
        zombie = psutil.Process(pid_in(it.work / "ready"))
        wait_until(lambda: zombie.status() == psutil.STATUS_ZOMBIE, 10, "it has ended")
        assert os.getpgid(zombie.pid) == it.running().pid

        began = time.monotonic()
        it.stop()

        assert time.monotonic() - began < 20

    def test_uses_the_signal_of_the_program(self, it: Supervised) -> None:
        it.start(
            "trap 'echo interrupted; exit 0' INT; echo ready; while :; do sleep 0.05; done",
            stop_signal="SIGINT",
        )
        it.said("ready")

        it.stop()

        assert "interrupted" in it.output

    def test_right_after_the_start_leaves_nothing(self, make: Callable[[str], Supervised]) -> None:
        for number in range(5):
            it = make(f"program-{number}")
            it.start('touch "$WORK/pid-$$"; ' + SLEEP)
            it.stop(grace=0)

            assert not it.status.alive
            started = [int(path.name.removeprefix("pid-")) for path in it.work.glob("pid-*")]
            assert not any(map(lives, started))

    def test_while_it_waits_for_a_restart(self, it: Supervised) -> None:
        it.start("exit 1")
        wait_until(lambda: it.status.state == "waiting", 10, "it waits")

        it.stop()

        assert it.status.state == "stopped"

    def test_twice_or_without_a_start_is_no_error(self, it: Supervised) -> None:
        it.stop()
        it.start(SLEEP)
        it.stop()
        it.stop()

    def test_then_remove_leaves_no_file(self, it: Supervised) -> None:
        it.start(SLEEP)
        it.stop()

        supervisor.remove(it.directory)

        assert not it.directory.exists()
        assert it.status.state == "absent"


class TestStatus:
    def test_of_nothing_is_absent(self, tmp_path: Path) -> None:
        assert supervisor.status(tmp_path / "nothing") == ProgramStatus(state="absent")

    def test_tells_that_a_supervisor_was_killed(self, it: Supervised) -> None:
        it.start(SLEEP)
        program = it.running().pid
        assert program is not None

        os.kill(it.pid, signal.SIGKILL)

        wait_until(lambda: it.status.state == "lost", 10, "it is lost")
        assert not it.status.alive
        if sys.platform == "linux":
            wait_until(lambda: not lives(program), 5, "the program went with its supervisor")

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a parent that asks no child how it ended")
    def test_of_one_that_was_killed_where_nobody_asks_how_is_lost(self, it: Supervised) -> None:
        # Like the first process of many a container, it is given every orphan, and asks for none.
        code = (
            "import ctypes, sys; from pathlib import Path; from prefect_dstack.hosts import supervisor\n"
            "ctypes.CDLL(None).prctl(36, 1)\n"
            "directory, program = Path(sys.argv[1]), sys.argv[2]\n"
            "supervisor.start(directory, supervisor.Program.model_validate_json(program))\n"
            "sys.stdin.read()"
        )
        program = it.program(SLEEP).model_dump_json()
        command = [sys.executable, "-c", code, str(it.directory), program]
        first = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            running = it.running().pid
            killed = psutil.Process(it.pid)
            assert killed.ppid() == first.pid
            os.kill(killed.pid, signal.SIGKILL)
            wait_until(lambda: killed.status() == psutil.STATUS_ZOMBIE, 10, "it has ended")
            assert it.status.state == "lost"
            assert running is not None
            wait_until(lambda: not lives(running), 10, "the program has ended with it")
            it.stop()
            it.start(SLEEP)
            assert it.running().pid not in (None, running)
        finally:
            first.kill()
            first.communicate()

    def test_asked_by_many_at_once_never_takes_a_stopped_one_for_alive(self, it: Supervised) -> None:
        """Who looks must not be taken for the supervisor by another who looks."""
        it.start(SLEEP)
        it.running()
        os.kill(it.pid, signal.SIGKILL)
        wait_until(lambda: it.status.state == "lost", 10, "it is lost")

        with ThreadPoolExecutor(16) as pool:
            seen = set(pool.map(lambda _: it.status.state, range(2000)))

        assert seen == {"lost"}

    def test_survives_a_damaged_file(self, it: Supervised) -> None:
        it.start(SLEEP)
        it.running()

        (it.directory / "status.json").write_text("{")

        assert it.status.alive


class TestSecrets:
    def test_are_neither_on_disk_nor_on_a_command_line(self, it: Supervised) -> None:
        secret = "hunter2-of-the-supervisor"
        it.start(
            'echo "length ${#TOKEN}"; ' + SLEEP,
            environment={"PATH": os.environ["PATH"], "TOKEN": SecretStr(secret)},
        )
        it.said(f"length {len(secret)}")

        written = b"".join(path.read_bytes() for path in it.work.rglob("*") if path.is_file())
        lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]

        assert secret.encode() not in written
        assert not [line for line in lines if secret in line]
        assert secret not in repr(it.program("", environment={"TOKEN": SecretStr(secret)}))
