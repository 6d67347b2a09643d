"""The key with which we log in to machines."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from pydantic import SecretStr

from prefect_dstack.errors import ProvisioningError
from prefect_dstack.hosts.keys import KeyPair, generate_key_pair, read_private_key

__all__ = ["client_key", "key_pair_of"]


def client_key(directory: Path) -> KeyPair:
    """Read the key of this machine, made on first use.

    Args:
        directory: Where it is kept, readable by this user only.

    Returns:
        The pair.

    Raises:
        ProvisioningError: If it cannot be read or written.
    """
    path = directory / "id_ed25519"
    try:
        if not path.exists():
            _create(path)
        return key_pair_of(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ProvisioningError(
            f"aws: the SSH key {path} cannot be used: {error}; remove it to get a new one"
        ) from error


def key_pair_of(private: str) -> KeyPair:
    """Complete a private key with its public one.

    Args:
        private: The text of an OpenSSH private key.

    Returns:
        The pair.

    Raises:
        ValueError: If it is no private key, or a passphrase guards it.
    """
    key = read_private_key(private)
    return KeyPair(SecretStr(private), f"{key.get_name()} {key.get_base64()} prefect-dstack")


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes the file 0600, and a link never replaces the key that another process was quicker to make.
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(generate_key_pair().private.get_secret_value())
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()
