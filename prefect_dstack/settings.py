"""Where prefect-dstack keeps its files on this machine, and the time-outs it uses."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["Settings", "settings", "socket_directory"]

# sun_path holds 108 bytes on Linux and 104 on macOS, with the terminating NUL.
LONGEST_SOCKET_PATH = 100


class Settings(BaseSettings):
    """Read from environment variables that start with `PREFECT_DSTACK_`."""

    model_config = SettingsConfigDict(env_prefix="PREFECT_DSTACK_", frozen=True)

    home: Path = Field(
        default_factory=lambda: Path.home() / ".prefect-dstack",
        description="The directory of local replicas, local gateways and the local Prefect server.",
    )
    local_gateway_port: int = Field(
        default=8080,
        ge=1,
        le=65535,
        description="The base port of the gateway on this machine, used by the first service without a port.",
    )
    bundle_size_limit: int = Field(
        default=500 * 1024**2,
        ge=0,
        description="The most bytes of files that a revision keeps a copy of.",
    )
    bundle_files_limit: int = Field(
        default=10_000, ge=0, description="The most files and directories that a revision keeps a copy of."
    )


def settings() -> Settings:
    """Read the settings anew, so that a changed environment is seen.

    Returns:
        The settings of this process.
    """
    return Settings()


def socket_directory(directory: Path) -> Path:
    """Find a directory whose path is short enough for unix sockets.

    Args:
        directory: Where the sockets would best be.

    Returns:
        `directory`, or a private directory under the system's temporary one, always the same for the
        same `directory` and user. It exists, and only this user may enter it.

    Raises:
        PermissionError: If somebody else holds the private directory.
    """
    if len(str(directory)) + len("/haproxy-runtime.sock") > LONGEST_SOCKET_PATH:
        digest = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()) / f"prefect-dstack-{os.getuid()}-{digest}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory}: belongs to another user, set TMPDIR to a directory of your own")
    directory.chmod(0o700)
    return directory
