"""Development environments on the command line, entered by OpenSSH itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from prefect_dstack.hosts.ports import free_port
from prefect_dstack.hosts.ssh_entry import SshEntry, add_entry, entry_names
from prefect_dstack.store.run_records import find_run, load_run
from tests.cli.terminal import Terminal
from tests.cli.test_runs import answers, is_running
from tests.command_line import CommandLine, Outcome
from tests.home import Home
from tests.polling import wait_until
from tests.prefect_server import PrefectServer
from tests.testbed.engine import LocalEngine
from tests.testbed.host import Host
from tests.testbed.images import load_image

pytestmark = pytest.mark.integration


@pytest.fixture
def write(tmp_path: Path, name: str, home: Home, prefect_server: PrefectServer) -> Callable[..., Path]:
    """Writes the file of a development environment."""
    directory = tmp_path / "work here"
    directory.mkdir()

    def write(**keys: Any) -> Path:
        file = directory / "vm.dstack.yml"
        file.write_text(yaml.safe_dump({"type": "dev-environment", "name": name, **keys}))
        return file

    return write


@pytest.fixture
def begin(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home
) -> Iterator[Callable[..., None]]:
    """Starts a development environment in the background; it is stopped at the end."""

    def begin(**keys: Any) -> None:
        cli.ok("apply", "-f", write(**keys), "-y", "-d")
        wait_until(lambda: is_running(name) or is_over(name), 120, "it is ready")
        assert is_running(name), find_run(name)

    yield begin
    if not is_over(name):
        cli.ok("stop", name, "-y")
    wait_until(lambda: not home.leftovers(), 60, "nothing is left")


class Ssh:
    """OpenSSH with the user's own configuration, into which `apply` has brought its entry."""

    def __init__(self, home: Home, name: str) -> None:
        self.start_of_command = ["ssh", "-F", str(home.path / ".ssh" / "config")]
        self.name = name

    @contextlib.contextmanager
    def shared(self, directory: Path) -> Iterator[None]:
        """Let all commands go through one connection, as editors do."""
        path = directory / "shared"
        before = self.start_of_command
        with self.start("cat", options=("-M", "-S", str(path))) as master:
            assert master.stdin
            wait_until(path.exists, 60, "the connection stands")
            self.start_of_command = [*before, "-S", str(path)]
            yield
            self.start_of_command = before
            master.stdin.close()

    def __call__(self, *arguments: str, stdin: str = "", options: tuple[str, ...] = ()) -> Outcome:
        """Run a command there."""
        done = subprocess.run(
            [*self.start_of_command, *options, self.name, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a command there; its output is in a pipe."""
        return subprocess.Popen(
            [*self.start_of_command, *options, self.name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def ssh(home: Home, name: str) -> Ssh:
    """Enters the test's development environment."""
    return Ssh(home, name)


def is_over(name: str) -> bool:
    """Whether nothing of it is to run any more."""
    record = find_run(name)
    return record is None or record.is_over


def entries(home: Home) -> list[Path]:
    """What leads into development environments from the user's SSH configuration."""
    places = [home.path / ".ssh" / "config", home.state / "ssh"]
    return [path for path in places if path.exists()]


def test_it_is_entered_by_ssh(
    begin: Callable[..., None],
    ssh: Ssh,
    name: str,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PASSPHRASE", "correct horse")
    begin(init=["export PREPARED='by init'"], env=["PASSPHRASE"])

    with ssh.shared(tmp_path):
        said = ssh('echo "$PREPARED, $PASSPHRASE"; pwd; cat; echo wrong >&2; exit 3', stdin="typed\n")
        assert said.code == 3
        assert said.out.splitlines() == ["by init, correct horse", str(tmp_path / "work here"), "typed"]
        assert said.err == "wrong\n"
        assert ssh(stdin="echo from the shell; exit 4\n").code == 4
        assert ssh("kill -9 $$").code == 137
        assert ssh("head -c 3000000 /dev/zero | tr '\\0' x").out == "x" * 3_000_000
        assert "correct horse" not in " ".join(
            argument for process in home.processes() for argument in process.cmdline()
        )

    # Only who has our key is let in, and only our server is believed.
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    identity = ("-o", f"IdentityFile={stranger}", "-o", "BatchMode=yes")
    lines = (home.state / "ssh" / "config").read_text().splitlines()
    without_ours = tmp_path / "stranger.config"
    without_ours.write_text("\n".join(line for line in lines if "IdentityFile" not in line))
    refused = ssh("true", options=("-F", str(without_ours), *identity))
    assert refused.code == 255
    assert "Permission denied (publickey)" in refused.err
    known = home.state / "ssh" / "known_hosts" / name
    known.write_text(f"{name} {' '.join((tmp_path / 'stranger.pub').read_text().split()[:2])}\n")
    assert "Host key verification failed" in ssh("true").err


def test_a_terminal_is_one(begin: Callable[..., None], ssh: Ssh, name: str, home: Home) -> None:
    begin()
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    resized = 'trap "stty size; exit 5" WINCH; tty; stty size; while :; do sleep 0.1; done'
    with subprocess.Popen(
        [*ssh.start_of_command, "-t", name, resized],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        os.close(theirs)
        assert process.stdout
        assert process.stdout.readline().startswith("/dev/")
        assert process.stdout.readline().strip() == "33 77"
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 99, 0, 0))
        process.send_signal(signal.SIGWINCH)
        assert process.stdout.readline().strip() == "44 99"
        assert process.wait(60) == 5
    os.close(ours)

    # Who leaves a program on a terminal hangs up on it.
    left = home.path / "left"
    with ssh.start(
        f"trap 'touch {left}; exit' HUP; echo here; while :; do sleep 0.1; done", options=("-tt",)
    ) as gone:
        assert gone.stdout
        assert gone.stdout.readline().strip() == "here"
        gone.kill()
    wait_until(left.exists, 60, "it was hung up")


def test_ports_are_reached_and_stopping_leaves_nothing(
    cli: CommandLine, write: Callable[..., Path], ssh: Ssh, name: str, home: Home
) -> None:
    there, here, other = free_port(), home.port, home.port + 1
    serve = f"{sys.executable} -m http.server --bind 127.0.0.1 {there} >/dev/null 2>&1 &"
    file = write(init=[serve], ports=[f"{here}:{there}"], ide="vscode")
    with cli.start("apply", "-f", file, "-y") as applying:
        assert applying.stdout
        lines = [next(line for line in applying.stdout if line.startswith("enter it with"))]
        lines.append(applying.stdout.readline())
        link = f"vscode://vscode-remote/ssh-remote+{name}{str(file.parent).replace(' ', '%20')}"
        assert lines == [f"enter it with: ssh {name}\n", f"open it in VS Code: {link}\n"]
        wait_until(lambda: answers(here), 60, "the forwarded port answers")

        with ssh.start("cat", options=("-L", f"{other}:localhost:{there}")) as session:
            assert session.stdin
            assert session.stdout
            session.stdin.write("here\n")
            session.stdin.flush()
            assert session.stdout.readline() == "here\n"
            wait_until(lambda: answers(other), 60, "the port of -L answers")
            asked = ssh(stdin="GET / HTTP/1.0\r\n\r\n", options=("-W", f"localhost:{there}"))
            assert "200 OK" in asked.out.splitlines()[0]
            assert "connect failed" in ssh(options=("-W", f"localhost:{free_port()}")).err
            (shown,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
            assert (shown["kind"], shown["state"], shown["running"]) == ("dev-environment", "running", 1)
            assert cli.ok("logs", name).out == f"{name} is ready\n"

            assert cli.ok("stop", name, "-y").out == f"{name} is stopped\n"
            assert session.wait(60) != 0
        assert applying.wait(60) == 0
        assert applying.stderr
        assert "Traceback" not in applying.stdout.read() + applying.stderr.read()
    wait_until(lambda: not home.leftovers(), 60, "nothing is left")
    assert not entries(home)
    assert (load_run(name).state, load_run(name).exit_code) == ("stopped", 0)
    assert name not in cli.ok("ps").out
    again = cli("ssh", name, "--", "true")
    assert (again.code, again.out) == (2, "")
    assert again.err == f"error: {name}: has ended (stopped); prefect-dstack apply runs it again\n"


@pytest.mark.slow
def test_ctrl_c_asks(
    terminal: Callable[..., Terminal], cli: CommandLine, write: Callable[..., Path], name: str, home: Home
) -> None:
    applying = terminal("apply", "-f", write(), "-y")
    applying.expect("enter it with: ssh", 120)
    applying.press_ctrl_c()
    applying.expect("[s/d]")
    applying.type("d")
    assert applying.end() == 0
    assert is_running(name)

    attached = terminal("attach", name)
    attached.expect(f"enter it with: ssh {name}")
    attached.press_ctrl_c()
    assert attached.end() == 0
    entered = terminal("ssh", name)
    entered.type("echo $((6 * 7)) answers; exit 6")
    entered.expect("42 answers")
    assert entered.end() == 6
    cli.ok("stop", name, "-y")
    wait_until(lambda: not home.leftovers(), 60, "nothing is left")


def test_a_failing_init_says_so_and_leaves_nothing(
    cli: CommandLine, write: Callable[..., Path], name: str, home: Home
) -> None:
    failed = cli("apply", "-f", write(init=["echo preparing", "exit 3", "echo never"]), "-y")

    assert failed.code == 3
    lines = failed.out.splitlines()
    assert "preparing" in lines
    assert "never" not in lines
    reason = f"'init' did not come to its end: {name}-1-0 exited with code 3"
    assert lines[-1] == f"error: {name} (run 1): {reason}"
    assert "Traceback" not in failed.out + failed.err
    assert not home.leftovers()
    assert not entries(home)
    assert (load_run(name).state, load_run(name).reason) == ("failed", reason)


@pytest.mark.slow
def test_it_stops_when_nobody_has_been_connected_for_long_enough(
    begin: Callable[..., None], ssh: Ssh, name: str, home: Home
) -> None:
    begin(inactivity_duration=20)

    # Much longer than it may be left alone, but it is not.
    assert ssh("sleep 30; echo still here").out == "still here\n"
    wait_until(lambda: is_over(name), 60, "it has stopped by itself")
    assert load_run(name).reason == "nobody was connected for 20 s"
    wait_until(lambda: not home.leftovers(), 60, "nothing is left")
    assert not entries(home)


@pytest.mark.slow
def test_what_a_killed_one_has_left_is_removed(
    begin: Callable[..., None], cli: CommandLine, ssh: Ssh, name: str, home: Home
) -> None:
    begin()
    with ssh.start("cat") as session:
        working = load_run(name).working
        assert working is not None
        assert working.process is not None
        keeper = psutil.Process(working.process)
        keeper.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            keeper.wait(30)
        assert entries(home)
        (shown,) = (it for it in cli.ok("ps", "--json").json if it["name"] == name)
        assert shown["state"] == "unfinished"

        assert f"{name}: take down what run 1 has left" in cli.ok("reconcile").err
        assert session.wait(60) != 0
    wait_until(lambda: not home.leftovers(), 60, "nothing is left")
    assert not entries(home)
    assert load_run(name).state == "failed"

    # What was ended from another machine has left its entry here; what is not known may be another API's.
    for one in (name, "unknown"):
        add_entry(SshEntry(name=one, hostname=one), home.state)
    assert f"{name}: remove its SSH entry" in cli.ok("reconcile").err
    assert entry_names(home.state) == ["unknown"]


@pytest.mark.slow
def test_a_task_is_entered_too(cli: CommandLine, tmp_path: Path, name: str, home: Home) -> None:
    file = tmp_path / "task.dstack.yml"
    commands = ["echo $DSTACK_NODE_RANK > rank", "sleep 300"]
    file.write_text(yaml.safe_dump({"type": "task", "name": name, "nodes": 2, "commands": commands}))
    cli.ok("apply", "-f", file, "-y", "-d")
    # It waits for what is not there yet.
    entered = cli("ssh", name, "--node", "1", "--", "echo $DSTACK_NODE_RANK; exit 7")
    assert (entered.code, entered.out) == (7, "1\n")
    assert cli("ssh", name, "--node", "2").code == 2
    assert not entries(home)
    cli.ok("stop", name, "-y")
    wait_until(lambda: not home.leftovers(), 60, "nothing is left")


@pytest.mark.docker
class TestInContainers:
    @pytest.fixture(params=["busybox", "python"])
    def image(
        self, docker_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> str:
        """An image on the Docker Engine of this machine."""
        monkeypatch.setenv("DOCKER_HOST", docker_engine.url)
        return load_image(docker_engine, request.param)

    def test_they_are_entered_and_leave_nothing(
        self,
        begin: Callable[..., None],
        cli: CommandLine,
        ssh: Ssh,
        name: str,
        home: Home,
        image: str,
        docker_engine: LocalEngine,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("PASSPHRASE", "correct horse")
        begin(
            image=image,
            init=["echo prepared > /tmp/prepared", "mkdir /tmp/www", "echo served > /tmp/www/index.html"],
            env={"GREETING": "hello", "PASSPHRASE": None},
            working_dir="/tmp",
            inactivity_duration="1h",
        )

        with ssh.shared(home.path):
            said = ssh(
                'echo "$GREETING, $PASSPHRASE"; cat prepared; cat; echo no >&2; exit 3', stdin="typed\n"
            )
            assert said.code == 3
            assert said.out.splitlines() == ["hello, correct horse", "prepared", "typed"]
            assert said.err == "no\n"
            assert ssh("head -c 3000000 /dev/zero | tr '\\0' x").out == "x" * 3_000_000
            assert ssh("tty", options=("-tt",)).out.startswith("/dev/")

            # It listens on the container's own loopback, which no published port leads to.
            ssh("httpd -p 127.0.0.1:7777 -h /tmp/www")
            asked = ssh(stdin="GET / HTTP/1.0\r\n\r\n", options=("-W", "localhost:7777"))
            assert asked.out.endswith("served\n")

            with Ssh(home, name).start("echo here; sleep 4321", options=("-tt",)) as session:
                assert session.stdout
                assert session.stdout.readline().strip() == "here"
                assert ssh("ps | grep '[s]leep 4321'").code == 0
                session.kill()
            wait_until(lambda: ssh("ps | grep '[s]leep 4321'").code == 1, 60, "it was hung up")

        cli.ok("stop", name, "-y")
        wait_until(lambda: is_over(name) and not home.leftovers(), 60, "nothing is left")
        assert not entries(home)
        with docker_engine.docker() as client:
            label = f"prefect-dstack.service={name}"
            assert not client.containers.list(all=True, filters={"label": label})

    @pytest.mark.slow
    def test_they_stop_when_nobody_is_connected(
        self, begin: Callable[..., None], ssh: Ssh, name: str, home: Home, image: str
    ) -> None:
        begin(image=image, inactivity_duration=20)
        assert ssh("sleep 30; echo still here").out == "still here\n"
        wait_until(lambda: is_over(name), 60, "it has stopped by itself")
        assert load_run(name).reason == "nobody was connected for 20 s"


@pytest.mark.testbed
@pytest.mark.timeout(600)
def test_they_are_entered_on_a_host(
    begin: Callable[..., None],
    cli: CommandLine,
    write: Callable[..., Path],
    ssh: Ssh,
    name: str,
    home: Home,
    tmp_path: Path,
    make_host: Callable[..., Host],
) -> None:
    host = make_host("workshop")
    image = load_image(host, "python")
    member = {"hostname": host.address, "user": "root", "identity_file": str(host.identity_file)}
    fleet = {
        "type": "fleet",
        "name": name,
        "ssh_config": {"hosts": [member | {"host_key": host.fingerprint}]},
    }
    (tmp_path / "fleet.yml").write_text(yaml.safe_dump(fleet))
    cli.ok("apply", "-f", tmp_path / "fleet.yml", "-y")
    begin(image=image, init=["echo served > /tmp/index.html"], fleets=[name], working_dir="/tmp")

    with ssh.shared(tmp_path):
        said = ssh("hostname; pwd; cat; echo no >&2; exit 3", stdin="typed\n")
        assert said == Outcome(3, f"{name}-1-0\n/tmp\ntyped\n", "no\n")
        assert ssh("head -c 3000000 /dev/zero | tr '\\0' x").out == "x" * 3_000_000
        ssh("httpd -p 127.0.0.1:7777 -h /tmp")
        asked = ssh(stdin="GET / HTTP/1.0\r\n\r\n", options=("-W", "localhost:7777"))
        assert asked.out.endswith("served\n")
        with Ssh(home, name).start("echo here; sleep 4321", options=("-tt",)) as session:
            assert session.stdout
            assert session.stdout.readline().strip() == "here"
            session.kill()
        wait_until(lambda: ssh("ps | grep '[s]leep 4321'").code == 1, 60, "it was hung up")

    cli.ok("stop", name, "-y")
    wait_until(lambda: is_over(name) and not home.leftovers(), 60, "nothing is left")
    assert host.check(["docker", "ps", "-aq"]) == ""
    assert not entries(home)
    cli.ok("fleet", "delete", name, "-y")
