from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

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


def test_a_proxy_command_is_refused_with_the_file(ssh: Path) -> None:
    (ssh / "config").write_text("Host gpu\n  ProxyCommand nc %h %p\n")
    with pytest.raises(ConfigurationError, match="ProxyCommand of gpu"):
        resolve(SshAccess(hostname="gpu"))


def test_a_host_key_alias_is_what_known_hosts_calls_it(ssh: Path) -> None:
    (ssh / "config").write_text("Host gpu\n  HostKeyAlias pool\n  Port 2222\n")
    assert resolve(SshAccess(hostname="gpu")).known_as == ("pool",)


def test_nonsense_is_refused_with_the_file(ssh: Path) -> None:
    (ssh / "config").write_text("Host gpu\n  HostName\n")
    with pytest.raises(ConfigurationError, match="config"):
        resolve(SshAccess(hostname="gpu"))
