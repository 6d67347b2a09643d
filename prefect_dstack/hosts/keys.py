"""Private keys: read, and made anew."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from pydantic import SecretStr

from prefect_dstack.hosts.host_keys import HostKey

__all__ = ["KeyPair", "LockedKeyError", "generate_key_pair", "read_private_key", "read_private_key_file"]


class LockedKeyError(ValueError):
    """A private key that only a passphrase opens."""


@dataclass(frozen=True)
class KeyPair:
    """A key of ours, in OpenSSH's formats.

    Attributes:
        private: The text of the private key file.
        public: The line of the public key file, without its end.
    """

    private: SecretStr
    public: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` writes it: `SHA256:...`."""
        return HostKey.parse(self.public).fingerprint


def generate_key_pair(comment: str = "prefect-dstack") -> KeyPair:
    """Create an Ed25519 key, to log in with or for a host to show.

    Args:
        comment: Put at the end of the public key.

    Returns:
        The pair.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(SecretStr(private), f"{public} {comment}")


def read_private_key(text: str) -> paramiko.PKey:
    """Read a private key of any kind that OpenSSH writes.

    Args:
        text: The text of the file.

    Returns:
        The key.

    Raises:
        LockedKeyError: If it needs a passphrase.
        ValueError: If it is no private key, or of a kind that is not supported.
    """
    # What was pasted into a form has often lost its last newline, or won carriage returns.
    text = text.replace("\r\n", "\n").strip() + "\n"
    data = text.encode()
    loaded: object
    try:
        try:
            loaded = load_ssh_private_key(data, password=None)
        except ValueError:
            loaded = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise LockedKeyError("the private key has a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("not a private key in a format of OpenSSH or PEM") from error
    kinds: tuple[tuple[type, type[paramiko.PKey]], ...] = (
        (Ed25519PrivateKey, paramiko.Ed25519Key),
        (RSAPrivateKey, paramiko.RSAKey),
        (EllipticCurvePrivateKey, paramiko.ECDSAKey),
    )
    for kind, reader in kinds:
        if isinstance(loaded, kind):
            # paramiko reads fewer formats than we have just read: hand it the one that it reads always.
            openssh = loaded.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            return reader.from_private_key(io.StringIO(openssh.decode()))
    raise ValueError("a private key of this kind is not supported, make one with `ssh-keygen -t ed25519`")


def read_private_key_file(path: Path) -> paramiko.PKey:
    """Read a private key file, with the certificate beside it if there is one.

    Args:
        path: The file.

    Returns:
        The key.

    Raises:
        OSError: If it cannot be read.
        LockedKeyError: If it needs a passphrase.
        ValueError: If it is no private key.
    """
    key = read_private_key(path.read_text(errors="replace"))
    certificate = path.with_name(path.name + "-cert.pub")
    if certificate.is_file():
        key.load_certificate(str(certificate))
    return key
