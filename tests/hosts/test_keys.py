from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from prefect_dstack.hosts.keys import (
    LockedKeyError,
    generate_key_pair,
    read_private_key,
    read_private_key_file,
)


@pytest.mark.parametrize(
    ("key", "layout"),
    [
        (ed25519.Ed25519PrivateKey.generate(), PrivateFormat.OpenSSH),
        (ec.generate_private_key(ec.SECP256R1()), PrivateFormat.OpenSSH),
        (ec.generate_private_key(ec.SECP384R1()), PrivateFormat.TraditionalOpenSSL),
        (rsa.generate_private_key(65537, 2048), PrivateFormat.TraditionalOpenSSL),
        (rsa.generate_private_key(65537, 2048), PrivateFormat.PKCS8),
        (ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8),
    ],
)
def test_every_usual_key_is_read(key: ed25519.Ed25519PrivateKey, layout: PrivateFormat) -> None:
    text = key.private_bytes(Encoding.PEM, layout, NoEncryption()).decode()
    assert read_private_key(text).can_sign()
    assert read_private_key(text.strip().replace("\n", "\r\n")).can_sign()


def test_a_locked_key_is_told_apart_from_nonsense() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    for layout in (PrivateFormat.OpenSSH, PrivateFormat.PKCS8):
        locked = key.private_bytes(Encoding.PEM, layout, BestAvailableEncryption(b"secret")).decode()
        with pytest.raises(LockedKeyError):
            read_private_key(locked)
    with pytest.raises(ValueError, match="not a private key"):
        read_private_key("hello")


def test_a_kind_that_ssh_does_not_have_is_refused() -> None:
    text = ed448.Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ValueError, match="not supported"):
        read_private_key(text.decode())


def test_a_generated_pair_belongs_together_and_hides_its_private_half(tmp_path: Path) -> None:
    pair = generate_key_pair("gateway")
    file = tmp_path / "key"
    file.write_text(pair.private.get_secret_value())
    key = read_private_key_file(file)
    assert f"{key.get_name()} {key.get_base64()} gateway" == pair.public
    assert "PRIVATE" not in repr(pair)
    assert pair.fingerprint.startswith("SHA256:")
