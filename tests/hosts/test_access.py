from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from prefect_dstack.hosts.access import SshAccess

names = st.text(string.ascii_letters + string.digits + ".", min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("text", "hostname", "user", "port"),
    [
        ("gpu-1", "gpu-1", None, None),
        ("ubuntu@gpu-1", "gpu-1", "ubuntu", None),
        ("ubuntu@gpu-1:2222", "gpu-1", "ubuntu", 2222),
        ("ssh://ubuntu@gpu-1:2222", "gpu-1", "ubuntu", 2222),
        ("10.0.0.5:22", "10.0.0.5", None, 22),
        ("[fd00::1]:2222", "fd00::1", None, 2222),
        ("root@fd00::1", "fd00::1", "root", None),
        ("fd00::1", "fd00::1", None, None),
    ],
)
def test_reads_what_people_write(text: str, hostname: str, user: str | None, port: int | None) -> None:
    access = SshAccess.parse(text)
    assert (access.hostname, access.user, access.port) == (hostname, user, port)


@pytest.mark.parametrize(
    "text", ["", "@", "a b", "a:99999", "a:0", "-oProxyCommand=x", "a@-b", "a\nb", "a:b"]
)
def test_refuses_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        SshAccess.parse(text)


@given(user=st.none() | names, host=names, port=st.none() | st.integers(1, 65535))
def test_reads_back_whatever_is_a_host(user: str | None, host: str, port: int | None) -> None:
    text = f"{user + '@' if user else ''}{host}{f':{port}' if port else ''}"
    access = SshAccess.parse(text)
    assert (access.user, access.hostname, access.port) == (user, host, port)


@given(st.text(max_size=40))
def test_never_takes_an_option_or_a_second_line_for_a_host(text: str) -> None:
    try:
        access = SshAccess.parse(text)
    except ValueError:
        return
    for part in (access.hostname, access.user or "x"):
        assert not part.startswith("-")
        assert not any(character.isspace() or ord(character) < 32 for character in part)


def test_jumps_are_nearest_first() -> None:
    jump = SshAccess.parse_jumps("a@first:2201,second")
    assert jump is not None
    assert jump.hostname == "second"
    assert jump.proxy_jump == SshAccess(hostname="first", user="a", port=2201)
    assert SshAccess.parse_jumps("none") is None


def test_jumps_may_be_written_as_text() -> None:
    access = SshAccess.model_validate({"hostname": "inner", "proxy_jump": "outer:22"})
    assert access.proxy_jump == SshAccess(hostname="outer", port=22)


def test_secrets_are_not_shown() -> None:
    access = SshAccess(hostname="h", password=SecretStr("hunter2"), ssh_key=SecretStr("PRIVATE"))
    assert "hunter2" not in repr(access)
    assert "PRIVATE" not in repr(access)


def test_equal_accesses_are_one_key_of_a_mapping() -> None:
    assert len({SshAccess(hostname="h", password=SecretStr("x")) for _ in range(2)}) == 1
    assert SshAccess(hostname="h", password=SecretStr("x")) != SshAccess(
        hostname="h", password=SecretStr("y")
    )


@pytest.mark.parametrize("pin", ["SHA256:short", "MD5:aa", "ssh-ed25519 AAAA", "nonsense"])
def test_a_host_key_that_is_none_is_refused(pin: str) -> None:
    with pytest.raises(ValidationError):
        SshAccess(hostname="h", host_key=pin)
