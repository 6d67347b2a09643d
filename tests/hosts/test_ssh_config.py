from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.ssh_config import resolve


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = tmp_path / ".ssh"
    directory.mkdir()
    return directory


def test_an_alias_is_completed(ssh: Path) -> None:
    (ssh / "config").write_text(
        "Host gpu\n  HostName 10.0.0.5\n  Port 2222\n  User ubuntu\n  IdentityFile ~/.ssh/gpu\n"
        "  ProxyJump jump.example.com\n  UserKnownHostsFile ~/.ssh/gpu_hosts\n"
    )
    found = resolve(SshAccess(hostname="gpu"))
    assert (found.hostname, found.port, found.user) == ("10.0.0.5", 2222, "ubuntu")
    assert found.identity_files == (ssh / "gpu",)
    assert found.proxy_jump == SshAccess(hostname="jump.example.com")
    assert found.known_as == ("[10.0.0.5]:2222",)
    assert found.known_hosts[0] == ssh / "gpu_hosts"
    assert found.use_agent


def test_what_is_written_wins(ssh: Path) -> None:
    (ssh / "config").write_text(
        "Host *\n  Port 2222\n  User ubuntu\n  IdentityFile ~/.ssh/gpu\n  ProxyJump j\n"
    )
    access = SshAccess(
        hostname="h", port=22, user="me", identity_file=Path("/k"), proxy_jump=SshAccess(hostname="other")
    )
    found = resolve(access)
    assert (found.port, found.user, found.identity_files) == (22, "me", (Path("/k"),))
    assert found.proxy_jump == SshAccess(hostname="other")
    assert found.known_as == ("h",)


def test_without_a_file_ssh_defaults_hold(ssh: Path) -> None:
    (ssh / "id_rsa").touch()
    (ssh / "id_ed25519").touch()
    found = resolve(SshAccess(hostname="h"))
    assert (found.hostname, found.port) == ("h", 22)
    assert found.identity_files == (ssh / "id_ed25519", ssh / "id_rsa")


def test_a_key_or_password_that_is_given_is_the_only_one_tried(ssh: Path) -> None:
    (ssh / "id_ed25519").touch()
    for access in (
        SshAccess(hostname="h", ssh_key=SecretStr("k")),
        SshAccess(hostname="h", password=SecretStr("p")),
    ):
        found = resolve(access)
        assert found.identity_files == ()
        assert not found.use_agent


def test_included_files_are_read(ssh: Path) -> None:
    (ssh / "conf.d").mkdir()
    (ssh / "conf.d" / "a").write_text("Host gpu\n  HostName 10.0.0.6\n")
    (ssh / "config").write_text("Include conf.d/*\nInclude missing\n")
    assert resolve(SshAccess(hostname="gpu")).hostname == "10.0.0.6"


def test_a_file_that_includes_itself_ends(ssh: Path) -> None:
    (ssh / "config").write_text("Include config\nHost gpu\n  HostName 10.0.0.7\n")
    assert resolve(SshAccess(hostname="gpu")).hostname == "10.0.0.7"


def test_a_block_of_an_included_file_ends_with_it(ssh: Path) -> None:
    (ssh / "ours").write_text("Host other\n  Port 1\n")
    (ssh / "config").write_text("Include ours\nUser everybody\nHost gpu\n  Include ours\n  Port 2222\n")
    found = resolve(SshAccess(hostname="gpu"))
    assert (found.user, found.port) == ("everybody", 2222)
    assert resolve(SshAccess(hostname="other")).user == "everybody"


def test_an_included_path_may_be_quoted(ssh: Path) -> None:
    (ssh / "a b").write_text("Host gpu\n  HostName 10.0.0.8\n")
    (ssh / "config").write_text('Include "a b"\n')
    assert resolve(SshAccess(hostname="gpu")).hostname == "10.0.0.8"


def test_an_include_that_makes_no_sense_is_refused_with_the_file(ssh: Path) -> None:
    (ssh / "config").write_text('Include "a b\n')
    with pytest.raises(ConfigurationError, match=r"config: Include \"a b"):
        resolve(SshAccess(hostname="gpu"))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("~/.ssh/one /two", ["one", "/two"]),
        ('"~/.ssh/a b" "/two"', ["a b", "/two"]),
        ("%d/.ssh/100%% /of/%h-%r", ["100%", "/of/10.0.0.5-me"]),
        ("none", []),
    ],
)
def test_files_of_known_hosts_are_read_as_ssh_does(ssh: Path, written: str, read: list[str]) -> None:
    (ssh / "config").write_text(f"Host gpu\n  HostName 10.0.0.5\n  User me\n  UserKnownHostsFile {written}\n")
    found = resolve(SshAccess(hostname="gpu")).known_hosts
    assert list(found) == [*(ssh / name for name in read), Path("/etc/ssh/ssh_known_hosts")]


def test_an_identity_file_is_read_as_ssh_does(ssh: Path) -> None:
    (ssh / "config").write_text('Host gpu\n  IdentityFile "~/.ssh/a b 100%%"\nHost *\n  IdentityFile none\n')
    assert resolve(SshAccess(hostname="gpu")).identity_files == (ssh / "a b 100%",)
    assert resolve(SshAccess(hostname="other")).identity_files == ()


@pytest.mark.parametrize("port", ["ssh", "0", "65536", "-1"])
def test_a_port_that_makes_no_sense_is_refused_with_the_file(ssh: Path, port: str) -> None:
    (ssh / "config").write_text(f"Host gpu\n  Port {port}\n")
    with pytest.raises(ConfigurationError, match=f"config: Port of gpu must be .* not '{port}'"):
        resolve(SshAccess(hostname="gpu"))


class TestProxy:
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["", "Host gpu", "Host other", "Host *", "Match originalhost gpu"]),
                st.sampled_from(
                    [
                        "ProxyJump none",
                        "ProxyJump me@door:2222",
                        "ProxyCommand none",
                        "ProxyCommand NONE",
                        "proxycommand=nc %h %p",
                        'ProxyCommand "/a b/nc" -x "%h" %p',
                        "ProxyCommand nc ~/sock # %n",
                        "HostName 10.0.0.5",
                    ]
                ),
            ),
            max_size=6,
        )
    )
    def test_what_rules_is_what_rules_for_ssh(
        self, tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
    ) -> None:
        home = tmp_path_factory.mktemp("home")
        (home / ".ssh").mkdir()
        config = home / ".ssh/config"
        config.write_text("".join(f"{block}\n  {line}\n" for block, line in lines))
        theirs = subprocess.run(
            ["ssh", "-G", "-F", config, "gpu"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        options = dict(line.partition(" ")[::2] for line in theirs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            found = resolve(SshAccess(hostname="gpu"))
        command = options.get("proxycommand")
        tokens = (("%h", options["hostname"]), ("%p", "22"), ("%n", "gpu"))
        for token, value in tokens:
            command = command and command.replace(token, value)
        assert found.proxy_command == command
        jump = options.get("proxyjump")
        assert found.proxy_jump == (SshAccess.parse(jump) if jump else None)

    def test_tokens_are_replaced_as_ssh_does(self, ssh: Path) -> None:
        (ssh / "config").write_text(
            "Host gpu\n  HostName gpu.example.com\n  Port 2222\n  User me\n"
            "  ProxyCommand printf '%%s,' %h %p %r %n 100%% %%h ~ \"a  b\" | tee /dev/stderr\n"
        )
        theirs = subprocess.run(
            ["ssh", "-T", "-F", ssh / "config", "gpu"], capture_output=True, text=True, check=False
        ).stderr
        command = resolve(SshAccess(hostname="gpu")).proxy_command
        assert command is not None
        ours = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True).stderr
        assert ours.startswith("gpu.example.com,2222,me,gpu,100%,%h,")
        assert ours in theirs

    def test_what_is_written_is_what_tokens_stand_for(self, ssh: Path) -> None:
        (ssh / "config").write_text("Host gpu\n  Port 1\n  User a\n  ProxyCommand nc %h %p %r\n")
        assert resolve(SshAccess(hostname="gpu", port=2, user="b")).proxy_command == "nc gpu 2 b"

    def test_a_written_jump_rules(self, ssh: Path) -> None:
        (ssh / "config").write_text("Host *\n  ProxyCommand nc %h %p\n")
        found = resolve(SshAccess(hostname="gpu", proxy_jump=SshAccess(hostname="door")))
        assert found.proxy_command is None
        assert found.proxy_jump == SshAccess(hostname="door")

    def test_it_is_not_shown(self, ssh: Path) -> None:
        (ssh / "config").write_text("Host gpu\n  ProxyCommand tunnel --token hunter2\n")
        assert "hunter2" not in repr(resolve(SshAccess(hostname="gpu")))

    @pytest.mark.parametrize("token", ["%x", "%"])
    def test_a_token_that_does_not_exist_is_named(self, ssh: Path, token: str) -> None:
        (ssh / "config").write_text(f"Host gpu\n  ProxyCommand nc %h {token}\n")
        with pytest.raises(ConfigurationError, match=rf"config: ProxyCommand of gpu: there is no `{token}`"):
            resolve(SshAccess(hostname="gpu"))

    @given(
        st.text(st.characters(min_codepoint=33, blacklist_categories=["Cs", "Zs", "Zl", "Zp"]), min_size=1)
    )
    def test_a_name_is_one_word_for_the_shell_or_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, name: str
    ) -> None:
        home = tmp_path_factory.mktemp("home")
        (home / ".ssh").mkdir()
        (home / ".ssh/config").write_text("Host *\n  ProxyCommand nc %h\n")
        try:
            access = SshAccess(hostname=name, user="me")
        except ValidationError:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(home))
            try:
                command = resolve(access).proxy_command
            except ConfigurationError as error:
                assert "one word" in str(error)  # noqa: PT017
                return
        assert command is not None
        # Brackets and stars stay: they stand in names of no host, and match no file.
        assert shlex.split(command) == ["nc", name]

    def test_a_jump_that_makes_no_sense_is_refused_with_the_file(self, ssh: Path) -> None:
        (ssh / "config").write_text("Host gpu\n  ProxyJump a b\n")
        with pytest.raises(ConfigurationError, match="config: ProxyJump of gpu"):
            resolve(SshAccess(hostname="gpu"))


def test_a_host_key_alias_is_what_known_hosts_calls_it(ssh: Path) -> None:
    (ssh / "config").write_text("Host gpu\n  HostKeyAlias pool\n  Port 2222\n")
    assert resolve(SshAccess(hostname="gpu")).known_as == ("pool",)


def test_nonsense_is_refused_with_the_file(ssh: Path) -> None:
    (ssh / "config").write_text("Host gpu\n  HostName\n")
    with pytest.raises(ConfigurationError, match="config"):
        resolve(SshAccess(hostname="gpu"))
