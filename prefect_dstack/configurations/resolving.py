"""What a configuration leaves open until something is launched, filled in then.

All functions here are pure: what they need is passed to them. Their results hold secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import SecretStr

from prefect_dstack.configurations.base import ConfigurationModel
from prefect_dstack.configurations.environment import Environment, RegistryAuth, RegistryCredentials
from prefect_dstack.configurations.interpolation import (
    OF_NODES,
    OPENING,
    InterpolationError,
    Path,
    Reference,
    fill_references,
    is_place,
    references,
    texts,
)
from prefect_dstack.configurations.messages import dotted, nearest
from prefect_dstack.configurations.mounts import InstanceMount, VolumeMount
from prefect_dstack.configurations.names import parse_header_value, parse_request_target
from prefect_dstack.configurations.run import RunConfiguration
from prefect_dstack.configurations.service import ServiceConfiguration, check_gateway
from prefect_dstack.configurations.task import TaskConfiguration
from prefect_dstack.configurations.traffic import Probe
from prefect_dstack.errors import ConfigurationError, NotFoundError

_LARGEST_VALUE = 1024 * 1024


@dataclass(frozen=True)
class NodeFacts:
    """What a node of a run learns when it starts.

    Attributes:
        node_rank: Its number among the nodes of the run, from 0; the master has 0.
        job_num: The number of its job in the replica, from 0.
        replica_num: The number of the replica, from 0.
        nodes_num: How many nodes the run has.
        master_node_ip: The private address of the master, or None while it has none.
        addresses: The private addresses of the nodes or replicas of each group; None where there is none yet.
    """

    node_rank: int = 0
    job_num: int = 0
    replica_num: int = 0
    nodes_num: int = 1
    master_node_ip: str | None = None
    addresses: tuple[tuple[str | None, ...], ...] = ()

    def resolve(self, reference: Reference) -> str:
        """Return what a `dstack` or `groups` reference stands for.

        Raises:
            InterpolationError: It is not known, or not known yet.
        """
        if reference.namespace == "groups":
            group, _, number = reference.address
            known = self.addresses[group] if group < len(self.addresses) else ()
            value: object = known[number] if number < len(known) else None
        else:
            value = getattr(self, reference.name)
        if value is None:
            raise InterpolationError(f"{reference.path} has no address yet")
        return str(value)


def resolve_environment(
    configuration: ConfigurationModel,
    lookup: Callable[[str], str],
    environ: Mapping[str, str],
    node: NodeFacts | None = None,
) -> Environment:
    """Resolve every variable of a configuration's `env` its value.

    Args:
        configuration: A service, task, development environment or fleet.
        lookup: Gives the value of a secret by its name, or raises.
        environ: The deployer's environment, for bare names and `${{ env.NAME }}`.
        node: What the node learns that the environment is for, for `${{ dstack.* }}` and `${{ groups[…] }}`.

    Returns:
        The environment, plain and secret values apart.

    Raises:
        ConfigurationError: A name that is not in the deployer's environment, or a secret that does not exist.
    """
    launch = _Launch(configuration, lookup, environ, node)
    plain: dict[str, str] = {}
    secret: dict[str, SecretStr] = {}
    for name, written in launch.env.items():
        value = launch.variable(name)
        namespaces = set[str]() if written is None else {found.namespace for found in references(written)}
        if written is None or namespaces & {"secrets", "env"}:
            secret[name] = SecretStr(value)
        else:
            plain[name] = value
    return Environment(plain=plain, secret=secret)


def resolve_registry_auth(
    configuration: ConfigurationModel,
    lookup: Callable[[str], str],
    environ: Mapping[str, str] | None = None,
) -> RegistryCredentials | None:
    """Return the credentials to pull the image with, or None if the configuration has none.

    Args:
        configuration: A service, task or development environment.
        lookup: Gives the value of a secret by its name, or raises.
        environ: The deployer's environment, for `${{ env.NAME }}`.

    Raises:
        ConfigurationError: A secret that does not exist, or a name that is not in the environment.
    """
    auth: RegistryAuth | None = getattr(configuration, "registry_auth", None)
    if auth is None:
        return None
    launch = _Launch(configuration, lookup, environ or {})
    return RegistryCredentials(
        username=launch.text("registry_auth.username", auth.username or ""),
        password=SecretStr(launch.text("registry_auth.password", auth.password)),
    )


@dataclass(frozen=True)
class RemoteRepository:
    """A Git repository on another machine, with the credentials for it.

    Attributes:
        url: Where it is, without credentials.
        branch: The branch; None: the default one.
        commit: The commit, perhaps abbreviated; None: the newest of the branch.
        username: The user to log in as.
        password: The password or token; None: Git finds its own.
    """

    url: str
    branch: str | None = None
    commit: str | None = None
    username: str = ""
    password: SecretStr | None = None


def resolve_repository(
    configuration: RunConfiguration, lookup: Callable[[str], str], environ: Mapping[str, str]
) -> RemoteRepository | None:
    """Return the remote repository of a run with its credentials, or None if it has none.

    Args:
        configuration: A service, task or development environment.
        lookup: Gives the value of a secret by its name, or raises.
        environ: The deployer's environment, for `${{ env.NAME }}`.

    Raises:
        ConfigurationError: A secret that does not exist, or a name that is not in the environment.
    """
    repository = configuration.repos[0] if configuration.repos else None
    if repository is None or repository.url is None:
        return None
    url, user = repository.address
    remote = RemoteRepository(url, repository.branch, repository.hash)
    if not user:
        return remote
    launch = _Launch(configuration, lookup, environ)
    name, colon, password = user.partition(":")
    # Of a token alone, Git hosts ignore whose it is said to be.
    name, password = (name, password) if colon else ("git", name)
    username, secret = (launch.text("repos.0.url", part) for part in (name, password))
    if "\n" in username + secret:
        raise launch.error("repos.0.url", "its secret has a line break, which Git does not take")
    return replace(remote, username=username, password=SecretStr(secret))


def resolve_probes(
    configuration: ServiceConfiguration,
    lookup: Callable[[str], str],
    environ: Mapping[str, str] | None = None,
) -> tuple[Probe, ...] | None:
    """Return the probes of a service as they are sent; their URLs, headers and bodies may hold secrets.

    Args:
        configuration: The service.
        lookup: Gives the value of a secret by its name, or raises.
        environ: The deployer's environment, for `${{ env.NAME }}`.

    Raises:
        ConfigurationError: A secret that does not exist, a name that is not in the environment, or a value
            that cannot be sent.
    """
    if configuration.probes is None:
        return None
    launch = _Launch(configuration, lookup, environ or {})
    return tuple(
        _probe(launch, f"probes.{number}", probe) for number, probe in enumerate(configuration.probes)
    )


def _probe(launch: _Launch, key: str, probe: Probe) -> Probe:
    # Checked once more: a value from elsewhere may hold what is not allowed in the file.
    url = launch.checked(f"{key}.url", probe.url, parse_request_target)
    headers = tuple(
        header.model_copy(
            update={
                "value": launch.checked(f"{key}.headers.{number}.value", header.value, parse_header_value)
            }
        )
        for number, header in enumerate(probe.headers)
    )
    body = None if probe.body is None else launch.text(f"{key}.body", probe.body)
    return probe.model_copy(update={"url": url, "headers": headers, "body": body})


def resolve_commands(
    configuration: RunConfiguration, node: NodeFacts, group: int | None = None
) -> tuple[str, ...]:
    """Return the commands of a run, or of one of its groups, with what the node learns filled in.

    Args:
        configuration: A service, task or development environment.
        node: What the node learns.
        group: The number of the group, from 0, of a run that has groups.

    Raises:
        ConfigurationError: The address of a node that has none.
    """
    if group is None:
        commands: tuple[str, ...] = getattr(configuration, "commands", ())
        if not isinstance(configuration, TaskConfiguration):
            return commands
        key = "commands"
    else:
        groups = _groups(configuration)
        commands = groups[group].commands
        key = f"{group_key(configuration)}.{group}.commands"
    launch = _Launch(configuration, _no_secret, {}, node)
    return tuple(launch.text(f"{key}.{number}", command) for number, command in enumerate(commands))


def resolve_mounts(
    configuration: RunConfiguration, node: NodeFacts
) -> tuple[VolumeMount | InstanceMount, ...]:
    """Return the mounts of a run with what the node learns filled in.

    Args:
        configuration: A service, task or development environment.
        node: What the node learns.

    Raises:
        ConfigurationError: The address of a node that has none.
    """
    launch = _Launch(configuration, _no_secret, {}, node)
    mounts: list[VolumeMount | InstanceMount] = []
    for number, mount in enumerate(configuration.volumes):
        key = f"volumes.{number}"
        if isinstance(mount, InstanceMount):
            path = launch.text(f"{key}.instance_path", mount.instance_path)
            mounts.append(mount.model_copy(update={"instance_path": path}))
        else:
            names = tuple(launch.text(f"{key}.name", name) for name in mount.name)
            mounts.append(mount.model_copy(update={"name": names}))
    return tuple(mounts)


def resolve_gateway(configuration: ServiceConfiguration, lookup: Callable[[str], str]) -> bool | str | None:
    """Return the gateway of a service, its secret filled in and checked as if it had been written.

    Args:
        configuration: A service.
        lookup: Gives the value of a secret by its name, or raises.

    Returns:
        The name or address of the gateway, true for the default one, false for none, None if nothing is said.

    Raises:
        ConfigurationError: The secret does not exist, or holds no name or address.
    """
    if not isinstance(configuration.gateway, str):
        return configuration.gateway
    launch = _Launch(configuration, lookup, {})
    try:
        return check_gateway(launch.text("gateway", configuration.gateway).strip())
    except ValueError:
        raise launch.error(
            "gateway", "its secret holds neither the name nor the address of a gateway"
        ) from None


def deployer_variables(configuration: ConfigurationModel) -> set[str]:
    """Return the names of the variables that a launch reads from the deployer's environment.

    Whoever launches a configuration again later, from elsewhere, has to keep their values.
    """
    env: dict[str, str | None] = getattr(configuration, "env", {})
    names = {name for name, written in env.items() if written is None}
    for path, reference in _late_references(configuration):
        is_own = path[:1] == ("env",) and path[1] == reference.name
        if reference.namespace == "env" and (is_own or reference.name not in env):
            names.add(reference.name)
    return names


def node_references(configuration: ConfigurationModel) -> list[tuple[str, Reference]]:
    """Return the references to what a node learns when it starts, each with its dotted key."""
    return [
        (dotted(path), reference)
        for path, reference in _late_references(configuration)
        if reference.namespace in OF_NODES
    ]


def awaited_addresses(configuration: ConfigurationModel) -> set[tuple[int, int]]:
    """Return the group and number of each node or replica whose address must be known before a launch."""
    return {
        (reference.address[0], reference.address[2])
        for _, reference in node_references(configuration)
        if reference.namespace == "groups"
    }


def private_references(configuration: ConfigurationModel, key: str) -> list[tuple[str, Reference]]:
    """Return the references to secrets and to the deployer's environment below a key, with dotted keys."""
    return [
        (dotted(path), reference)
        for path, reference in _late_references(configuration)
        if path[:1] == (key,) and reference.namespace in ("secrets", "env")
    ]


def group_key(configuration: RunConfiguration) -> str:
    """Return the key under which a run has its groups."""
    return "replicas" if isinstance(getattr(configuration, "replicas", None), tuple) else "groups"


def _groups(configuration: RunConfiguration) -> tuple[Any, ...]:
    groups: tuple[Any, ...] | None = getattr(configuration, group_key(configuration), None)
    return groups or ()


def _late_references(configuration: ConfigurationModel) -> Iterator[tuple[Path, Reference]]:
    places = configuration.places.all
    for path, text in texts(configuration.model_dump(mode="json", exclude_unset=True)):
        if OPENING in text and is_place(path, places):
            for reference in references(text):
                yield path, reference


def _no_secret(name: str) -> str:
    raise InterpolationError(f"secrets.{name} cannot stand here")


class _Launch:
    """The texts of one configuration, filled in for one launch."""

    def __init__(
        self,
        configuration: ConfigurationModel,
        lookup: Callable[[str], str],
        environ: Mapping[str, str],
        node: NodeFacts | None = None,
    ) -> None:
        self.env: dict[str, str | None] = getattr(configuration, "env", {})
        self._configuration = configuration
        self._lookup = lookup
        self._environ = environ
        self._node = node
        self._known: dict[str, str] = {}
        self._open: set[str] = set()

    def text(self, key: str, written: str, own: str | None = None) -> str:
        """Fill in the text of a key; `own` is the variable whose value it is."""

        def value(reference: Reference) -> str:
            return self._value(key, reference, own)

        try:
            filled_in = fill_references(written, value)
        except (NotFoundError, InterpolationError) as problem:
            raise self.error(key, str(problem)) from problem
        if len(filled_in) > _LARGEST_VALUE:
            raise self.error(key, "becomes longer than 1 MiB when it is filled in")
        if "\0" in filled_in:
            raise self.error(key, "its secret has a NUL character, which no environment can hold")
        return filled_in

    def checked(self, key: str, written: str, parse: Callable[[str], str]) -> str:
        """Fill in the text of a key, and check it without showing it."""
        try:
            return parse(self.text(key, written))
        except ValueError:
            raise self.error(key, "what it is filled in with cannot be sent in a request") from None

    def variable(self, name: str) -> str:
        """Return the value of one of the configuration's own variables."""
        if name not in self._known:
            key = f"env.{name}"
            written = self.env[name]
            if name in self._open:
                raise self.error(key, f"env.{name} refers to itself")
            self._open.add(name)
            if written is None:
                self._known[name] = self._of_deployer(key, name, "has no value and")
            else:
                self._known[name] = self.text(key, written, own=name)
        return self._known[name]

    def error(self, key: str, problem: str) -> ConfigurationError:
        """Create the error about a key."""
        return ConfigurationError(
            problem,
            source=self._configuration.source_name,
            line=self._configuration.line_of(key),
            key=key,
        )

    def _value(self, key: str, reference: Reference, own: str | None) -> str:
        if reference.namespace == "secrets":
            return self._lookup(reference.name)
        if reference.namespace == "env":
            if reference.name in self.env and reference.name != own:
                return self.variable(reference.name)
            return self._of_deployer(key, reference.name, f"env.{reference.name}")
        if reference.namespace in OF_NODES and self._node is not None:
            return self._node.resolve(reference)
        raise InterpolationError(f"{reference.path} is known only when a node starts, not here")

    def _of_deployer(self, key: str, name: str, what: str) -> str:
        if name in self._environ:
            return self._environ[name]
        hint = nearest(name, [*self.env, *self._environ]) if name not in self.env else None
        raise self.error(
            key,
            f"{what} is not in the environment; "
            + (f"did you mean {hint}?" if hint else f"run 'export {name}=…', or give it one"),
        )
