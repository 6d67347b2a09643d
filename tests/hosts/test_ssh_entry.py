"""Entries for `ssh NAME`, with the real `ssh`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts import ssh_entry
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.pool import close_connections
from prefect_dstack.hosts.ssh_config import resolve
from prefect_dstack.hosts.ssh_entry import SshEntry
from prefect_dstack.hosts.ssh_machine import SshMachine
from tests.hosts.relay import RELAY
from tests.testbed.host import Host
from tests.testbed.testbed import Testbed

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
TRAIN = SshEntry(name="train", hostname="10.0.0.5", port=2222, user="root", host_key=KEY)


def ours() -> Path:
    """The home directory of prefect-dstack in the test's own home."""
    return Path.home() / ".prefect-dstack"


def add_entry(entry: SshEntry) -> None:
    ssh_entry.add_entry(entry, ours())


def remove_entry(name: str) -> None:
    ssh_entry.remove_entry(name, ours())


def entry_names() -> list[str]:
    return ssh_entry.entry_names(ours())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_DSTACK_HOME", raising=False)
    return tmp_path


@pytest.fixture(params=["plain", "it's [a] 100% odd *?"])
def any_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / request.param
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    return path


def ssh(home: Path, name: str) -> dict[str, str]:
    """What OpenSSH makes of the user's configuration."""
    command = ["ssh", "-G", "-F", str(home / ".ssh/config"), name]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.partition(" ")[::2] for line in output.splitlines())


def leftovers(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


class TestAdd:
    def test_ssh_finds_everything(self, any_home: Path) -> None:
        key = any_home / "key 100%"
        add_entry(TRAIN.model_copy(update={"identity_file": key, "proxy_jump": "me@door:23,second"}))
        found = ssh(any_home, "train")
        assert (found["hostname"], found["port"], found["user"]) == ("10.0.0.5", "2222", "root")
        assert found["proxyjump"] == "me@door:23,second"
        assert found["stricthostkeychecking"] == "true"
        known = any_home / ".prefect-dstack/ssh/known_hosts/train"
        assert known.read_text() == f"train {KEY}\n"
        ours = resolve(SshAccess(hostname="train"))
        assert (ours.hostname, ours.port, ours.user) == ("10.0.0.5", 2222, "root")
        assert ours.known_as == ("train",)
        assert ours.known_hosts[0] == known
        assert ours.identity_files == (key,)

    def test_a_command_is_taken_as_it_is(self, home: Path) -> None:
        command = "aws ssm start-session --target 'i-0' --parameters portNumber=%p # %%"
        add_entry(SshEntry(name="ssm", hostname="i-0", proxy_command=command))
        assert ssh(home, "ssm")["proxycommand"] == command

    def test_files_are_for_the_user_alone(self, home: Path) -> None:
        add_entry(TRAIN)
        assert (home / ".ssh").stat().st_mode & 0o777 == 0o700
        assert (home / ".prefect-dstack/ssh").stat().st_mode & 0o777 == 0o700
        assert {oct(path.stat().st_mode & 0o777) for path in leftovers(home)} == {"0o600"}

    def test_the_line_is_there_once(self, home: Path) -> None:
        for number in range(3):
            add_entry(TRAIN.model_copy(update={"name": f"train-{number}"}))
            add_entry(TRAIN)
        assert (home / ".ssh/config").read_text().count("Include") == 1
        assert entry_names() == ["train", "train-0", "train-1", "train-2"]

    def test_one_of_the_same_name_is_replaced(self, home: Path) -> None:
        add_entry(TRAIN)
        add_entry(SshEntry(name="train", hostname="10.0.0.6"))
        assert ssh(home, "train")["hostname"] == "10.0.0.6"
        assert not (home / ".prefect-dstack/ssh/known_hosts/train").exists()

    def test_the_users_own_settings_go_on(self, home: Path) -> None:
        (home / ".ssh").mkdir()
        (home / ".ssh/config").write_text("User somebody\nHost train\n  Port 1\n  Compression yes\n")
        add_entry(TRAIN)
        assert ssh(home, "train")["port"] == "2222"
        assert ssh(home, "train")["compression"] == "yes"
        assert ssh(home, "other")["user"] == "somebody"
        assert resolve(SshAccess(hostname="other")).user == "somebody"

    def test_a_line_that_was_moved_is_found(self, home: Path) -> None:
        add_entry(TRAIN)
        config = home / ".ssh/config"
        line = config.read_text().splitlines()[0]
        config.write_text(f"User me\n\n{line}\nHost *\n")
        add_entry(TRAIN)
        assert config.read_text() == f"User me\n\n{line}\nHost *\n"
        # There, it would count for one host alone.
        config.write_text(f"Host one\n{line}\n")
        add_entry(TRAIN)
        assert config.read_text() == f"{line}\nHost one\n{line}\n"
        remove_entry("train")
        assert config.read_text() == "Host one\n"

    def test_a_link_stays_a_link_and_a_mode_a_mode(self, home: Path) -> None:
        (home / ".ssh").mkdir()
        (home / "dotfiles").write_text("Host x\n")
        (home / "dotfiles").chmod(0o640)
        (home / ".ssh/config").symlink_to("../dotfiles")
        add_entry(TRAIN)
        assert (home / ".ssh/config").is_symlink()
        assert (home / "dotfiles").read_text().startswith("Include ")
        assert (home / "dotfiles").stat().st_mode & 0o777 == 0o640
        remove_entry("train")
        assert (home / "dotfiles").read_text() == "Host x\n"

    def test_what_cannot_be_written_is_explained(self, home: Path) -> None:
        (home / ".ssh/config").mkdir(parents=True)
        with pytest.raises(
            ConfigurationError, match=r"config: cannot be changed: .*: put the line `Include "
        ):
            add_entry(TRAIN)


class TestRemove:
    def test_nothing_is_left(self, home: Path) -> None:
        add_entry(TRAIN)
        remove_entry("train")
        assert leftovers(home) == []
        assert not (home / ".prefect-dstack/ssh").exists()

    def test_others_stay(self, home: Path) -> None:
        add_entry(TRAIN)
        add_entry(TRAIN.model_copy(update={"name": "other"}))
        remove_entry("train")
        assert entry_names() == ["other"]
        assert ssh(home, "other")["port"] == "2222"
        assert ssh(home, "train")["port"] == "22"
        assert [path.name for path in (home / ".prefect-dstack/ssh/known_hosts").iterdir()] == ["other"]

    def test_one_that_is_not_there_is_no_error(self, home: Path) -> None:
        remove_entry("train")
        assert list(home.iterdir()) == []

    def test_several_at_once_are_no_error(self, home: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                add_entry(TRAIN)
                list(pool.map(remove_entry, ["train"] * 8))
                assert leftovers(home) == []

    def test_an_empty_file_of_the_users_stays(self, home: Path) -> None:
        (home / ".ssh").mkdir()
        (home / ".ssh/config").touch()
        add_entry(TRAIN)
        remove_entry("train")
        assert (home / ".ssh/config").read_bytes() == b""

    def test_what_was_added_to_a_file_of_ours_stays(self, home: Path) -> None:
        add_entry(TRAIN)
        with (home / ".ssh/config").open("a") as config:
            config.write("Host mine\n")
        remove_entry("train")
        assert (home / ".ssh/config").read_text().endswith("Host mine\n")

    def test_it_goes_on_where_somebody_was_killed(self, home: Path) -> None:
        add_entry(TRAIN)
        (home / ".ssh/config").unlink()
        remove_entry("train")
        assert leftovers(home) == []


contents = st.binary(max_size=200) | st.lists(
    st.sampled_from(
        [
            b"Host *\n",
            b"Host x\r\n",
            b"  Port 1\n",
            b"Include other\n",
            b"#\n",
            b"\n",
            b" ",
            b"\r",
            b"Match all",
        ]
    )
).map(b"".join)


@given(contents, st.lists(st.sampled_from(["a", "b", "c"]), max_size=6))
@example(b"", ["a"])
@example(b"Host x", ["a", "b", "a"])
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_user_wrote_is_there_before_and_after(
    home: Path, content: bytes, names: list[str]
) -> None:
    (home / ".ssh").mkdir(exist_ok=True)
    config = home / ".ssh/config"
    config.write_bytes(content)
    for name in names:
        add_entry(SshEntry(name=name, hostname="h", host_key=KEY))
        line, _, rest = config.read_bytes().partition(b"\n")
        assert line.startswith(b"Include ")
        assert rest == content
    for name in names:
        remove_entry(name)
    assert config.read_bytes() == content
    assert leftovers(home) == [config]


words = st.text(max_size=20) | st.text('ab0 \n"\\%$#{,:[]@-', max_size=10)


@example(name="a", hostname="b", user="c", jump="\n0", command="x", path="d")
@given(name=words, hostname=words, user=words, jump=words, command=words, path=words)
def test_whatever_is_asked_for_is_one_entry_or_refused(
    name: str, hostname: str, user: str, jump: str, command: str, path: str
) -> None:
    tame = SshEntry(name="a", hostname="b", user="c", identity_file=Path("d"), host_key=KEY)
    for change in (
        {"name": name},
        {"hostname": hostname},
        {"user": user},
        {"identity_file": path},
        {"proxy_jump": jump},
        {"proxy_command": command},
    ):
        try:
            entry = SshEntry.model_validate(tame.model_dump() | change)
        except (ValidationError, ConfigurationError):
            continue
        lines = entry.block(Path("/k")).rstrip("\n").split("\n")
        expected = tame.block(Path("/k")).rstrip("\n").split("\n")
        extra = [line for line in lines if line.split()[0] in ("ProxyJump", "ProxyCommand")]
        assert len(lines) == len(expected) + len(extra)
        assert [line.split()[0] for line in lines[: len(expected)]] == [line.split()[0] for line in expected]
        assert ssh_entry._blocks("#\n" + entry.block(Path("/k"))) == {entry.name: entry.block(Path("/k"))}


def test_a_jump_and_a_command_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="not both"):
        SshEntry(name="a", hostname="b", proxy_jump="c", proxy_command="d")


def test_many_processes_lose_nothing(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text("Host mine\n")
    code = (
        "import sys, pathlib; from prefect_dstack.hosts.ssh_entry import *\n"
        "home = pathlib.Path.home() / '.prefect-dstack'\n"
        "for number in range(10):\n"
        "    add_entry(SshEntry(name=f'{sys.argv[1]}-{number}', hostname='h'), home)\n"
        "    if number % 2: remove_entry(f'{sys.argv[1]}-{number}', home)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert entry_names() == sorted(f"{one}-{two}" for one in range(4) for two in range(0, 10, 2))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remove_entry, entry_names()))
    assert (home / ".ssh/config").read_text() == "Host mine\n"


class TestHosts:
    pytestmark = pytest.mark.testbed

    @pytest.fixture
    def host(self, testbed: Testbed, home: Path) -> Iterator[Host]:
        host = testbed.host("with-an-entry", docker="absent")
        yield host
        testbed.remove(host)

    def test_ssh_enters_it_and_believes_one_key_alone(self, host: Host, home: Path) -> None:
        entry = SshEntry(
            name="train",
            hostname="nowhere.invalid",
            user="root",
            identity_file=host.identity_file,
            host_key=host.host_key,
            proxy_command=f"{RELAY} {host.address} %p",
        )
        add_entry(entry)
        add_entry(
            SshEntry(
                name="inner",
                hostname="127.0.0.1",
                user="root",
                identity_file=host.identity_file,
                host_key=host.host_key,
                proxy_jump="train",
            )
        )

        def hostname(entry: str) -> subprocess.CompletedProcess[str]:
            command = ["ssh", "-F", str(home / ".ssh/config"), "-o", "BatchMode=yes", entry, "hostname"]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        for name in ("train", "inner"):
            assert hostname(name).stdout == "with-an-entry\n", hostname(name).stderr
        assert SshMachine(SshAccess(hostname="inner")).run(["hostname"]).stdout == b"with-an-entry\n"
        close_connections()
        add_entry(entry.model_copy(update={"host_key": KEY}))
        assert "Host key verification failed" in hostname("train").stderr
