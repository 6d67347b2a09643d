"""How a host is reached over SSH, and who we are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from prefect_dstack.hosts.host_keys import parse_pin

__all__ = ["SshAccess"]

# A leading hyphen would be an option to `ssh`; blanks and control characters would split a line of a file.
HOSTNAME = r"^[^\s\-@/\x00-\x1f\x7f][^\s@/\x00-\x1f\x7f]{0,252}$"
USER = r"^[^\s\-@:/\x00-\x1f\x7f][^\s@:/\x00-\x1f\x7f]{0,63}$"

PLACE = re.compile(
    r"(?:(?P<user>[^@]+)@)?(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^\[\]:]+))(?::(?P<port>\d{1,5}))?"
)


class SshAccess(BaseModel):
    """How a host is reached. What is left out is taken from `~/.ssh/config`, then from SSH's defaults.

    Example:
        >>> SshAccess.parse("ubuntu@gpu-1.example.com:2222").port
        2222
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hostname: str = Field(
        pattern=HOSTNAME, description="A name, an address, or a `Host` alias of `~/.ssh/config`."
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="The port of its SSH server.")
    user: str | None = Field(default=None, pattern=USER, description="Who we log in as.")
    identity_file: Path | None = Field(default=None, description="A private key on this machine.")
    ssh_key: SecretStr | None = Field(default=None, description="The text of a private key.")
    password: SecretStr | None = Field(default=None, description="The user's password.")
    host_key: str | None = Field(
        default=None,
        description="The host's key (`ssh-ed25519 AAAA...`) or its fingerprint (`SHA256:...`); "
        "default: what known_hosts says.",
    )
    proxy_jump: SshAccess | None = Field(
        default=None, description="The host through which this one is reached."
    )

    @field_validator("host_key")
    @classmethod
    def _check_host_key(cls, value: str | None) -> str | None:
        if value is not None:
            parse_pin(value)
        return value

    @field_validator("proxy_jump", mode="before")
    @classmethod
    def _read_jumps(cls, value: Any) -> Any:
        return cls.parse_jumps(value) if isinstance(value, str) else value

    @classmethod
    def parse(cls, text: str, **rest: Any) -> Self:
        """Read `[user@]host[:port]`, an IPv6 address in brackets if a port follows.

        Args:
            text: As it stands in `ssh_config`'s ProxyJump or in a fleet's list of hosts.
            **rest: Other fields.

        Returns:
            The access.

        Raises:
            ValueError: If it has another form.
        """
        text = text.strip().removeprefix("ssh://")
        if text.count(":") > 1 and "[" not in text:
            user, _, address = text.rpartition("@")
            return cls(hostname=address, user=user or None, **rest)
        found = PLACE.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a host, write [user@]host[:port]")
        port = found["port"]
        return cls(
            hostname=found["bracketed"] or found["plain"],
            user=found["user"],
            port=None if port is None else int(port),
            **rest,
        )

    @classmethod
    def parse_jumps(cls, text: str) -> Self | None:
        """Read a ProxyJump value: hosts separated by commas, the first one is the nearest to us.

        Args:
            text: The value, or `none`.

        Returns:
            The last host, reached through the others; None for `none`.
        """
        hop: Self | None = None
        if text.strip().lower() != "none":
            for part in text.split(","):
                hop = cls.parse(part, proxy_jump=hop)
        return hop
