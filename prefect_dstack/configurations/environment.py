"""Environment variables and registry credentials: as written, and as a launch gets them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from prefect_dstack.configurations.base import Model, refuse
from prefect_dstack.configurations.interpolation import InterpolationError, Reference, parse
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import EnvironmentName, Text

SHORTEST_SECRET = 4
_SHELL_VARIABLE = re.compile(r"\$\{?([A-Z][A-Z0-9_]{2,})\}?")


def parse_environment(value: Any) -> Any:
    """Turn a list of `NAME=value` and `NAME` into a mapping; leave a mapping.

    A name without a value maps to None: its value comes from the deployer's environment. So does a name whose
    value is a reference to itself.
    """
    if isinstance(value, dict):
        return {name: None if _is_of_deployer(name, text) else text for name, text in value.items()}
    if not isinstance(value, (list, tuple)):
        if value is not None:
            refuse("must be a mapping of NAME: value, or a list of NAME=value")
        return value
    variables: dict[str, str | None] = {}
    for item in value:
        if not isinstance(item, str):
            refuse("must be a list of NAME=value, or a mapping of NAME: value")
        name, equals, text = item.partition("=")
        if name in variables:
            refuse(f"{show(name)} is there twice; keep one")
        variables[name] = text if equals and not _is_of_deployer(name, text) else None
    return variables


def _is_of_deployer(name: str, value: Any) -> bool:
    try:
        return isinstance(value, str) and parse(value) == [Reference("env", name)]
    except InterpolationError:
        return False


Env = Annotated[
    dict[EnvironmentName, Text | None],
    BeforeValidator(
        parse_environment, json_schema_input_type=dict[str, str | int | float | bool | None] | list[str]
    ),
]


class Environment(Model):
    """The environment of one launch.

    Attributes:
        plain: Values that may be shown.
        secret: Values that hold a secret, or came from the deployer's environment by a bare name.
    """

    plain: dict[str, str] = Field(default_factory=dict, description="The values that may be shown.")
    secret: dict[str, SecretStr] = Field(default_factory=dict, description="The values that are kept hidden.")

    def reveal(self) -> dict[str, str]:
        """Return all variables in clear, for the process that gets them and nothing else."""
        return {**self.plain, **{name: value.get_secret_value() for name, value in self.secret.items()}}

    def hide(self, text: str) -> str:
        """Redact secrets from what a program has written, before others read it.

        Args:
            text: Any text.

        Returns:
            The text with `***` for each secret, and for each longer line of one.
        """
        for value in self.secret.values():
            whole = value.get_secret_value()
            lines = [line.strip() for line in whole.splitlines()]
            for part in sorted({whole, *lines}, key=len, reverse=True):
                # Less is no secret, and would take words apart that have nothing to do with it.
                if len(part) >= SHORTEST_SECRET:
                    text = text.replace(part, "***")
        return text


def check_password(value: str) -> str:
    """Refuse a password that is a shell's variable, which nothing would fill in."""
    variable = _SHELL_VARIABLE.fullmatch(value)
    if variable is not None:
        refuse(
            f"is taken as it stands, and no shell fills it in; did you mean ${{{{ env.{variable[1]} }}}}? "
            "A password that begins so goes into a secret: ${{ secrets.NAME }}"
        )
    return value


class RegistryAuth(Model):
    """Credentials of a private image registry."""

    username: Text | None = Field(default=None, description="The user name, perhaps a secret reference.")
    password: Annotated[Text, AfterValidator(check_password)] = Field(
        repr=False, description="The password or access token, best a secret reference."
    )


class RegistryCredentials(Model):
    """Credentials of a private image registry, with the secrets filled in."""

    username: str = Field(default="", description="The user name.")
    password: SecretStr = Field(description="The password or access token.")


def check_references(text: str) -> str:
    """Refuse text whose `${{ … }}` could not be resolved at launch."""
    try:
        for part in parse(text):
            if not isinstance(part, str) and part.namespace != "secrets":
                refuse(f"{part} must be filled in before this is used")
    except InterpolationError as problem:
        refuse(str(problem))
    return text
