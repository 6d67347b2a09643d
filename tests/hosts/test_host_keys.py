from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.hosts.host_keys import HostKey, parse_pin, read_known_hosts, trusted_keys
from prefect_dstack.hosts.keys import generate_key_pair

KEY = HostKey.parse(generate_key_pair().public)
OTHER = HostKey.parse(generate_key_pair().public)


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("gpu-1", "gpu-1", True),
        ("GPU-1", "gpu-1", True),
        ("gpu-1", "gpu-10", False),
        ("a,gpu-1,10.0.0.5", "10.0.0.5", True),
        ("*.example.com", "gpu.example.com", True),
        ("*.example.com,!gpu.example.com", "gpu.example.com", False),
        ("10.0.0.?", "10.0.0.5", True),
        ("[gpu-1]:2222", "[gpu-1]:2222", True),
        ("[gpu-1]:2222", "gpu-1", False),
        ("[*]:2222", "[gpu-1]:2222", True),
        (hashed("gpu-1"), "gpu-1", True),
        (hashed("gpu-1"), "gpu-2", False),
        (hashed("[gpu-1]:2222"), "[gpu-1]:2222", True),
        ("|1|broken", "gpu-1", False),
        ("|1|a|b", "gpu-1", False),
    ],
)
def test_names_match_as_ssh_matches_them(pattern: str, name: str, matches: bool) -> None:
    assert bool(read_known_hosts(f"{pattern} {KEY.line} comment\n", [name]).keys) is matches


def test_keys_are_read_and_nonsense_is_skipped() -> None:
    nonsense = "# comment\n\nh ssh-rsa AAAA\nh\nh ssh-ed25519\n"
    text = f"{nonsense}h {KEY.line}\n@cert-authority h {OTHER.line}\nh {OTHER.line}"
    assert read_known_hosts(text, ["h"]).keys == (KEY, OTHER)


def test_a_revoked_key_is_refused_even_if_it_is_also_listed() -> None:
    trusted = read_known_hosts(f"h {KEY.line}\n@revoked h {KEY.line}\n", ["h"])
    assert not trusted.accept(KEY)
    assert "@revoked" in str(trusted.refuse("h", [KEY]))


@given(st.text(), st.text(min_size=1, max_size=20))
def test_no_file_makes_the_reader_fail_or_trust_a_key_it_does_not_hold(text: str, name: str) -> None:
    assert not read_known_hosts(text, [name]).accept(KEY)


def test_a_pin_wins_over_the_files(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"h {OTHER.line}\n")
    assert trusted_keys(KEY.fingerprint, ["h"], [file]).accept(KEY)
    assert not trusted_keys(KEY.fingerprint, ["h"], [file]).accept(OTHER)
    assert trusted_keys(KEY.line, ["h"], [file]).accept(KEY)
    assert trusted_keys(None, ["h"], [tmp_path / "missing", file]).accept(OTHER)


def test_an_unknown_key_is_refused_with_its_fingerprint_and_what_to_do() -> None:
    message = str(trusted_keys(None, ["h"], []).refuse("gpu-1 (10.0.0.5:22)", [KEY]))
    assert "gpu-1 (10.0.0.5:22)" in message
    assert f"host_key: {KEY.fingerprint}" in message
    assert "ssh_host_ed25519_key.pub" in message
    assert "\n" not in message


def test_a_changed_key_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"h {KEY.line}\n")
    message = str(trusted_keys(None, ["h"], [file]).refuse("h", [OTHER]))
    assert KEY.fingerprint in message
    assert OTHER.fingerprint in message
    assert str(file) in message


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    file.write_text(f"{KEY.line} comment\n")
    shown = subprocess.run(["ssh-keygen", "-lf", file], capture_output=True, text=True, check=True).stdout
    assert KEY.fingerprint in shown.split()
    assert parse_pin(f"{KEY.fingerprint}=") == KEY.fingerprint


@pytest.mark.parametrize("text", ["MD5:" + ":".join(["aa"] * 16), ":".join(["aa"] * 16)])
def test_an_md5_fingerprint_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="MD5"):
        parse_pin(text)
