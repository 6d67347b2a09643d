"""Environment variables: as written, and as a launch gets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr

from prefect_dstack.configurations.base import ConfigurationModel, Model, refuse
from prefect_dstack.configurations.interpolation import InterpolationError, parse, resolve_text, secrets_of
from prefect_dstack.configurations.messages import show
from prefect_dstack.configurations.names import EnvironmentName, Text
from prefect_dstack.errors import ConfigurationError, NotFoundError

SHORTEST_SECRET = 4


def parse_environment(value: Any) -> Any:
    """Turn a list of `NAME=value` and `NAME` into a mapping; leave a mapping.

    A name without a value maps to None: its value comes from the deployer's environment.
    """
    if not isinstance(value, (list, tuple)):
        if not isinstance(value, (dict, type(None))):
            refuse("must be a mapping of NAME: value, or a list of NAME=value")
        return value
    variables: dict[str, str | None] = {}
    for item in value:
        if not isinstance(item, str):
            refuse("must be a list of NAME=value, or a mapping of NAME: value")
        name, equals, text = item.partition("=")
        if name in variables:
            refuse(f"{show(name)} is there twice; keep one")
        variables[name] = text if equals else None
    return variables


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
        """Take the secrets out of what a program has written, before others read it.

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


class RegistryAuth(Model):
    """Credentials of a private image registry."""

    username: Text | None = Field(default=None, description="The user name, perhaps a secret reference.")
    password: Text = Field(repr=False, description="The password or access token, best a secret reference.")


class RegistryCredentials(Model):
    """Credentials of a private image registry, with the secrets filled in."""

    username: str = Field(default="", description="The user name.")
    password: SecretStr = Field(description="The password or access token.")


def resolve_environment(
    configuration: ConfigurationModel, lookup: Callable[[str], str], environ: Mapping[str, str]
) -> Environment:
    """Give every variable of a configuration's `env` its value.

    Args:
        configuration: A service, task, development environment or fleet.
        lookup: Gives the value of a secret by its name, or raises.
        environ: The deployer's environment, for bare names.

    Returns:
        The environment, plain and secret values apart.

    Raises:
        ConfigurationError: A bare name that is not in the deployer's environment, or a secret that does not
            exist.
    """
    plain: dict[str, str] = {}
    secret: dict[str, SecretStr] = {}
    env: dict[str, str | None] = getattr(configuration, "env", {})
    for name, written in env.items():
        if written is None:
            if name not in environ:
                raise ConfigurationError(
                    f"has no value and is not in the environment; run 'export {name}=…', or give it one",
                    source=configuration.source_name,
                    line=configuration.line_of(f"env.{name}"),
                    key=f"env.{name}",
                )
            secret[name] = SecretStr(environ[name])
        elif secrets_of(written):
            secret[name] = SecretStr(_checked(configuration, f"env.{name}", written, lookup))
        else:
            plain[name] = "".join(str(part) for part in parse(written))
    return Environment(plain=plain, secret=secret)


def resolve_registry_auth(
    configuration: ConfigurationModel, lookup: Callable[[str], str]
) -> RegistryCredentials | None:
    """Return the credentials to pull the image with, or None if the configuration has none.

    Args:
        configuration: A service, task or development environment.
        lookup: Gives the value of a secret by its name, or raises.

    Raises:
        ConfigurationError: A secret that does not exist.
    """
    auth: RegistryAuth | None = getattr(configuration, "registry_auth", None)
    if auth is None:
        return None
    return RegistryCredentials(
        username=fill_in(configuration, "registry_auth.username", auth.username or "", lookup),
        password=SecretStr(fill_in(configuration, "registry_auth.password", auth.password, lookup)),
    )


def fill_in(configuration: ConfigurationModel, key: str, written: str, lookup: Callable[[str], str]) -> str:
    """Fill in the secrets of one key of a configuration.

    Args:
        configuration: What the key is in.
        key: Its dotted path.
        written: What is written there.
        lookup: Gives the value of a secret by its name, or raises.

    Returns:
        The text with the secrets in it.

    Raises:
        ConfigurationError: A secret that does not exist; says where it is asked for.
    """
    try:
        return resolve_text(written, lookup)
    except NotFoundError as error:
        raise ConfigurationError(
            str(error), source=configuration.source_name, line=configuration.line_of(key), key=key
        ) from error


def _checked(configuration: ConfigurationModel, key: str, written: str, lookup: Callable[[str], str]) -> str:
    value = fill_in(configuration, key, written, lookup)
    if "\0" in value:
        raise ConfigurationError(
            "its secret has a NUL character, which no environment can hold",
            source=configuration.source_name,
            line=configuration.line_of(key),
            key=key,
        )
    return value


def check_references(text: str) -> str:
    """Refuse text whose `${{ … }}` could not be resolved at launch."""
    try:
        for part in parse(text):
            if not isinstance(part, str) and part.namespace != "secrets":
                refuse(f"{part} must be filled in before this is used")
    except InterpolationError as problem:
        refuse(str(problem))
    return text
