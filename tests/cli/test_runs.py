"""Tasks on the command line: exit codes, ports, Ctrl-C, detaching, and what other commands show of them."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_dstack.hosts.ports import free_port
from prefect_dstack.store.run_records import find_run, load_run
from tests.command_line import CommandLine
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer

pytestmark = pytest.mark.integration

FOREVER = "echo begun; sleep 300"


@pytest.fixture
def write(tmp_path: Path, name: str, home: Home, prefect_server: PrefectServer) -> Callable[..., Path]:
    """Writes the file of a task."""

    def write(*commands: str, **keys: Any) -> Path:
        file = tmp_path / "task.dstack.yml"
        file.write_text(yaml.safe_dump({"type": "task", "name": name, "commands": list(commands), **keys}))
        return file

    return write


def answers(port: int) -> bool:
    """Whether a web server answers on a port of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    return False


def is_running(name: str) -> bool:
    """Whether the nodes of a task have begun."""
    record = find_run(name)
    return record is not None and record.state == "running"


def test_ends_as_the_task_does(cli: CommandLine, write: Callable[..., Path], name: str, home: Home) -> None:
    failed = cli("apply", "-f", write("echo :bug: [red]100%[/red]", "exit 3"), "-y")

    assert failed.code == 3
    lines = failed.out.splitlines()
    assert ":bug: [red]100%[/red]" in lines
    assert lines[-1] == f"error: {name} (run 1): {name}-1-0 exited with code 3"
    assert "Traceback" not in failed.out + failed.err
    assert not home.leftovers()

    (shown,) = (it for it in cli.ok("ps", "--all", "--json").json if it["name"] == name)
    assert (shown["kind"], shown["state"], shown["exit_code"]) == ("task", "failed", 3)
    assert shown["problems"] == [f"{name}-1-0 exited with code 3"]
    assert ":bug: [red]100%[/red]" in cli.ok("logs", name).out.splitlines()
    assert cli.ok("delete", name, "-y").out == f"{name} is deleted\n"
    assert find_run(name) is None
    assert not [path for path in home.state.rglob("*") if name in path.name]


def test_the_log_comes_line_by_line(cli: CommandLine, write: Callable[..., Path], tmp_path: Path) -> None:
    # The second line is not written before the first one was read.
    seen = tmp_path / "seen"
    with cli.start(
        "apply", "-f", write("echo first", f"until [ -e {seen} ]; do sleep 0.1; done", "echo second"), "-y"
    ) as applying:
        assert applying.stdout
        assert "first\n" in iter(applying.stdout.readline, "")
        seen.touch()
        assert "second\n" in iter(applying.stdout.readline, "")
    assert applying.returncode == 0


def test_of_two_at_once_one_runs_and_each_prints_its_own_output(
    cli: CommandLine, write: Callable[..., Path], name: str, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    file = write("echo begun", f"until [ -e {seen} ]; do sleep 0.1; done")
    with cli.start("apply", "-f", file, "-y") as one, cli.start("apply", "-f", file, "-y") as other:
        wait_until(lambda: 2 in (one.poll(), other.poll()), 120, "one of them is refused")
        seen.touch()
        outcomes = sorted((process.wait(60), "".join(process.communicate())) for process in (one, other))
    assert [code for code, _ in outcomes] == [0, 2], outcomes
    ran, refused = (output for _, output in outcomes)
    assert "begun\n" in ran
    assert f"{name} (run 1): done" in ran
    assert "begun" not in refused
    assert f"error: {name}: " in refused


def test_a_port_answers_while_it_runs(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home
) -> None:
    there, here = free_port(), home.port
    file = write(f"exec {sys.executable} -m http.server --bind 127.0.0.1 {there}", ports=[f"{here}:{there}"])
    with cli.start("apply", "-f", file, "-y") as applying:
        assert applying.stderr
        assert applying.stderr.readline() == f"127.0.0.1:{here} leads to port {there} of {name}-1-0\n"
        wait_until(lambda: answers(here), 60, "the port answers")
        applying.send_signal(signal.SIGINT)
        out, err = applying.communicate(timeout=60)
    assert applying.returncode == 130
    assert "Traceback" not in out + err
    assert not home.leftovers()
    assert load_run(name).state == "stopped"


def test_a_port_that_is_taken_is_refused_before_anything_starts(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home
) -> None:
    with socket.create_server(("127.0.0.1", home.port)):
        taken = cli("apply", "-f", write(FOREVER, ports=[f"{home.port}:8000"]), "-y")
    twice = cli("apply", "-f", write(FOREVER, ports=[f"{home.port}:8000", f"{home.port}:8001"]), "-y")

    assert (taken.code, twice.code) == (2, 2)
    assert f"error: port {home.port} of this machine is taken" in taken.err
    assert f"error: port {home.port} of this machine is asked for twice" in twice.err
    assert find_run(name) is None


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "while it starts", "while it runs"])
def test_ctrl_c_leaves_nothing(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home, moment: str
) -> None:
    log = home.state / "runs" / f"{name}.log"
    moments = {
        "at once": log.exists,
        "while it starts": lambda: find_run(name) is not None,
        "while it runs": lambda: is_running(name),
    }
    with cli.start("apply", "-f", write(FOREVER, nodes=2), "-y") as applying:
        wait_until(moments[moment], 60, moment)
        applying.send_signal(signal.SIGINT)
        out, err = applying.communicate(timeout=60)
    assert applying.returncode == 130
    assert "Traceback" not in out + err
    assert not home.leftovers()
    record = find_run(name)
    assert record is None or record.is_over


@pytest.mark.slow
def test_detach_attach_stop(cli: CommandLine, write: Callable[..., Path], name: str, home: Home) -> None:
    there, here = free_port(), home.port
    server = f"exec {sys.executable} -m http.server --bind 127.0.0.1 {there}"
    begun = cli.ok("apply", "-f", write("echo begun", server, ports=[f"{here}:{there}"]), "-y", "-d")
    assert begun.out == f"{name} (run 1) goes on\nfollow it with: prefect-dstack attach {name}\n"
    wait_until(lambda: is_running(name), 60)

    with cli.start("attach", name) as attached:
        assert attached.stdout
        assert "begun\n" in iter(attached.stdout.readline, "")
        wait_until(lambda: answers(here), 60, "the port answers")
        attached.send_signal(signal.SIGINT)
        attached.communicate(timeout=60)
    assert attached.returncode == 0
    (shown,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
    assert (shown["state"], shown["running"], shown["wanted"]) == ("running", 1, 1)
    assert "begun" in cli.ok("logs", name).out.splitlines()
    second = cli("apply", "-f", write(FOREVER), "-y")
    assert second.code == 2
    assert f"error: {name}: runs already" in second.err
    assert cli("delete", name, "-y").code == 2

    with cli.start("attach", name) as attached:
        assert attached.stdout
        assert "begun\n" in iter(attached.stdout.readline, "")
        assert cli.ok("stop", name, "-y").out == f"{name} is stopped\n"
        attached.communicate(timeout=60)
    assert attached.returncode == 130
    wait_until(lambda: not home.leftovers(), 30, "nothing is left")
    assert load_run(name).state == "stopped"
    assert cli("attach", name).code == 2
    assert name not in cli.ok("ps").out


def test_artifacts_come_back(cli: CommandLine, write: Callable[..., Path], name: str, tmp_path: Path) -> None:
    cli.ok(
        "apply",
        *("-f", write("echo result > made"), "-y", "--artifact", f"made={tmp_path / 'back' / 'made'}"),
    )
    assert (tmp_path / "back" / "made").read_text() == "result\n"
    wrong = cli("apply", "-f", write("true"), "-y", "--artifact", "made")
    assert (wrong.code, wrong.err) == (2, "error: --artifact made: write PATH=LOCAL\n")
