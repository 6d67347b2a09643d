"""Tokens that open services: made here, known afterwards by their SHA-256 only."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from prefect_dstack.configurations.scalars import parse_duration
from prefect_dstack.errors import ConfigurationError

__all__ = ["NewToken", "Token", "expiry", "new_token", "of_gateway", "of_service", "token_id"]

PREFIX = "dst"
ID_LENGTH = 10
# 40 of 62 letters and digits: 238 bits. A word of letters and digits is one double click.
SECRET_LENGTH = 40
_ID_ALPHABET = string.ascii_lowercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits
_TOKEN = re.compile(rf"{PREFIX}_([a-z0-9]{{{ID_LENGTH}}})_[A-Za-z0-9]{{{SECRET_LENGTH}}}")


class Token(BaseModel):
    """What is remembered of a token: never the token."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="What it is called; a part of the token that is no secret.")
    sha256: str = Field(description="The SHA-256 of the token, in lower-case hexadecimal.")
    service: str | None = Field(default=None, description="The service that it opens; None: all of them.")
    gateway: str | None = Field(
        default=None, description="The gateway whose services it opens; None: not bound to one."
    )
    created_at: datetime = Field(description="When it was made.")
    created_by: str = Field(default="", description="Who made it: user and machine.")
    expires_at: datetime | None = Field(default=None, description="When it ends; None: never.")
    revoked: bool = Field(
        default=False, description="Whether it opens nothing any more, as soon as all gateways know it."
    )

    def valid(self, now: datetime) -> bool:
        """Return whether it opens anything.

        Args:
            now: The time.

        Returns:
            Whether it is neither revoked nor at its end.
        """
        return not self.revoked and (self.expires_at is None or self.expires_at > now)


class NewToken(Token):
    """A token that was just made. Its value is nowhere else: whoever needs it takes it from here."""

    value: SecretStr = Field(description="The token itself, for `Authorization: Bearer`.")


def new_token(
    now: datetime,
    *,
    service: str | None = None,
    gateway: str | None = None,
    expires_at: datetime | None = None,
    created_by: str = "",
) -> NewToken:
    """Create a token.

    Args:
        now: The time.
        service: The service that it opens; None: all of them.
        gateway: The gateway whose services it opens; None: not bound to one.
        expires_at: When it ends; None: never.
        created_by: Who makes it.

    Returns:
        The token with its value.
    """
    identifier = "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(SECRET_LENGTH))
    value = f"{PREFIX}_{identifier}_{secret}"
    return NewToken(
        id=identifier,
        sha256=hashlib.sha256(value.encode()).hexdigest(),
        service=service,
        gateway=gateway,
        created_at=now,
        created_by=created_by,
        expires_at=expires_at,
        value=SecretStr(value),
    )


def expiry(expires: str | timedelta | None, now: datetime) -> datetime | None:
    """Return when a token ends.

    Args:
        expires: How long it is good for, such as `30d` or `12h`; None: for ever.
        now: The time.

    Returns:
        When it ends; None: never.

    Raises:
        ConfigurationError: If it is no duration, or of no length.
    """
    if expires is None:
        return None
    if isinstance(expires, str):
        try:
            expires = timedelta(seconds=parse_duration(expires))
        except PydanticCustomError as error:
            raise ConfigurationError(error.message(), key="expires") from None
    if expires < timedelta(seconds=1):
        raise ConfigurationError("must be in the future, such as 30d", key="expires")
    return now + expires


def token_id(text: str) -> str:
    """Find the id of a token, given the id or the token, as one finds it where it leaked.

    Args:
        text: Either.

    Returns:
        The id.
    """
    match = _TOKEN.fullmatch(text.strip())
    return match[1] if match else text.strip()


def of_service(tokens: Iterable[Token], service: str, now: datetime) -> dict[str, Token]:
    """Select the tokens that were made for one service.

    Args:
        tokens: All tokens.
        service: The service.
        now: The time; only valid tokens are selected.

    Returns:
        Tokens by id.
    """
    return {token.id: token for token in tokens if token.service == service and token.valid(now)}


def of_gateway(tokens: Iterable[Token], gateway: str, now: datetime) -> dict[str, Token]:
    """Select the tokens that open every service of a gateway.

    Args:
        tokens: All tokens.
        gateway: The gateway.
        now: The time; only valid tokens are selected.

    Returns:
        Tokens by id.
    """
    return {
        token.id: token
        for token in tokens
        if token.service is None and token.gateway in (None, gateway) and token.valid(now)
    }
