"""References such as `${{ secrets.X }}`, `${{ env.X }}`, `${{ run.args }}` in the texts of a configuration.

What is known when a configuration is loaded is filled in then: `run`, `prefect.variables`, and what the file
itself says under `env`. The rest stays a reference, in the few places that may hold one, until something is
launched: secrets, the deployer's environment where it can be kept secret, and what a node learns when it
starts (`dstack`, `groups`). `$${{` stands for a literal `${{`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_dstack.configurations.messages import nearest, one_of, show
from prefect_dstack.errors import NotFoundError

OPENING = "${{"
ESCAPED_OPENING = "$${{"
DEFAULT_PROJECT = "main"
NODE_FACTS = ("node_rank", "job_num", "replica_num", "nodes_num", "master_node_ip")
"""What follows `dstack.` in a reference."""
OF_NODES = ("dstack", "groups")
"""The namespaces of what a node learns when it starts."""

_ELSEWHERE = "put it under 'env' and use $NAME in the commands"
_REFERENCE = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ADDRESS = re.compile(r"\[([0-9]{1,4})\]\.(nodes|replicas)\[([0-9]{1,4})\]\.IP_ADDRESS")
_VARIABLES = "prefect.variables"
_NAMESPACES = ("secrets", "env", "run", "dstack", "groups", "prefect")
_LARGEST_RESULT = 1024 * 1024
_COST_OF_REFERENCE = 64

Path = tuple[str | int, ...]


class InterpolationError(ValueError):
    """What is wrong with a `${{ … }}`; the text is the message."""


@dataclass(frozen=True)
class Reference:
    """One `${{ namespace.name }}`."""

    namespace: str
    name: str

    @property
    def path(self) -> str:
        """What stands between the braces."""
        return f"{self.namespace}{'' if self.namespace == 'groups' else '.'}{self.name}"

    @property
    def address(self) -> tuple[int, str, int]:
        """The group, `nodes` or `replicas`, and the number in the group, of a reference to an address."""
        match = _ADDRESS.fullmatch(self.name)
        if self.namespace != "groups" or match is None:
            raise InterpolationError(f"{self.path} is not the address of a node")
        return int(match[1]), match[2], int(match[3])

    def __str__(self) -> str:
        return f"${{{{ {self.path} }}}}"


Part = str | Reference


def parse(text: str) -> list[Part]:
    """Split a text into literal texts and references.

    Args:
        text: Text as a person wrote it.

    Returns:
        Literals (unescaped, never empty) and references, in order.

    Raises:
        InterpolationError: A reference that is not closed, or that nothing can fill in.
    """
    parts: list[Part] = []
    literal = ""
    position = 0
    while (opening := text.find(OPENING, position)) >= 0:
        if opening > position and text[opening - 1] == "$":
            literal += text[position : opening - 1] + OPENING
            position = opening + len(OPENING)
            continue
        match = _REFERENCE.match(text, opening)
        if match is None:
            raise InterpolationError("'${{' without its '}}'; write '$${{' for the characters themselves")
        literal += text[position:opening]
        if literal:
            parts.append(literal)
        literal = ""
        parts.append(_parse_reference(match[1].strip()))
        position = match.end()
    literal += text[position:]
    if literal:
        parts.append(literal)
    return parts


def _parse_reference(inside: str) -> Reference:
    namespace, dot, name = inside.partition(".")
    if namespace == "groups" or namespace.startswith("groups["):
        return _parse_address(inside)
    if namespace == "prefect":
        kind, _, name = name.partition(".")
        if kind != "variables":
            raise InterpolationError(
                f"{show(inside)} is not known; write prefect.variables.NAME, or secrets.NAME"
            )
        namespace = _VARIABLES
    elif not dot or namespace not in _NAMESPACES:
        hint = nearest(namespace, _NAMESPACES)
        raise InterpolationError(
            f"{show(inside)} is not known; "
            + (
                f"did you mean '{hint}'?"
                if hint and dot
                else "write secrets.NAME, env.NAME, run.name or run.args"
            )
        )
    if namespace == "dstack" and name not in NODE_FACTS:
        known = one_of(f"dstack.{fact}" for fact in NODE_FACTS).replace(" or ", " and ")
        raise InterpolationError(f"{show(inside)} is not known; there are {known}")
    if not (_VARIABLE_NAME if namespace == "env" else _NAME).fullmatch(name):
        raise InterpolationError(f"{show(inside)} is not a name; use letters, digits, '_' and '-'")
    return Reference(namespace, name)


def _parse_address(inside: str) -> Reference:
    name = inside.removeprefix("groups")
    if not _ADDRESS.fullmatch(name):
        raise InterpolationError(
            f"{show(inside)} is not known; write groups[0].nodes[0].IP_ADDRESS, or of a service's group "
            "groups[0].replicas[0].IP_ADDRESS"
        )
    return Reference("groups", name)


def render(parts: Iterable[Part]) -> str:
    """Join parts into text that `parse` splits into the same parts."""
    text = ""
    for part in parts:
        if isinstance(part, Reference) and text.endswith("$"):
            raise InterpolationError(
                f"a '$' directly before {part} would hide it; put something between them"
            )
        text += str(part) if isinstance(part, Reference) else escape(part)
    return text


def escape(text: str) -> str:
    """Escape literal text so that nothing in it is taken for a reference."""
    return text.replace(OPENING, ESCAPED_OPENING)


def references(text: str) -> list[Reference]:
    """Return the references in a text, in order."""
    return [part for part in parse(text) if isinstance(part, Reference)]


def secrets_of(text: str) -> set[str]:
    """Return the names of the secrets that a text refers to."""
    return {reference.name for reference in references(text) if reference.namespace == "secrets"}


def fill_references(value: str, resolve: Callable[[Reference], str]) -> str:
    """Return a text with each reference replaced by what `resolve` returns for it."""
    return "".join(resolve(part) if isinstance(part, Reference) else part for part in parse(value))


def resolve_text(value: str, lookup: Callable[[str], str]) -> str:
    """Fill in the secrets of a text that may hold nothing else.

    Args:
        value: Text of `gateway` or `ssh_key` of a loaded configuration.
        lookup: Gives the value of a secret by its name, or raises.

    Returns:
        The text with the secrets in it. Keep it out of logs, labels and command lines.
    """

    def secret(reference: Reference) -> str:
        if reference.namespace != "secrets":
            raise InterpolationError(f"{reference} cannot be filled in here; use a secret")
        return lookup(reference.name)

    return fill_references(value, secret)


def keep_references(value: str, namespaces: Iterable[str]) -> str:
    """Return a text in the form that `parse` reads, if it has references of these namespaces only.

    Any other text is taken for data, and escaped: a model that was made by hand says what it says.
    """
    try:
        known = all(reference.namespace in namespaces for reference in references(value))
    except InterpolationError:
        known = False
    return value if known else escape(value)


def check_with(parse_literal: Callable[[str], str], stand_in: str) -> Callable[[str], str]:
    """Create a validator for text that may hold references, each of which counts as `stand_in` does."""

    def check(value: str) -> str:
        if OPENING not in value:
            return parse_literal(value)
        try:
            filled_in = fill_references(value, lambda _: stand_in)
        except InterpolationError as problem:
            raise ValueError(str(problem)) from None
        parse_literal(filled_in)
        return value

    return check


def is_place(path: Path, places: Iterable[tuple[str, ...]]) -> bool:
    """Return whether a path is one of the places, `*` standing for any one part."""
    return any(
        len(place) == len(path) and all(p in ("*", str(q)) for p, q in zip(place, path, strict=True))
        for place in places
    )


def texts(data: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield every text value below a value, with its path."""
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from texts(value, (*path, key))
    elif isinstance(data, (list, tuple)):
        for index, value in enumerate(data):
            yield from texts(value, (*path, index))


def escape_literals(data: Any, places: Iterable[tuple[str, ...]], path: Path = ()) -> Any:
    """Escape every text but those at the places where references may stay."""
    if isinstance(data, str):
        return data if OPENING not in data or is_place(path, places) else escape(data)
    if isinstance(data, dict):
        return {key: escape_literals(value, places, (*path, key)) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(escape_literals(value, places, (*path, i)) for i, value in enumerate(data))
    return data


@dataclass(frozen=True)
class Places:
    """Where in a kind of configuration references may stay until something is launched.

    Attributes:
        secrets: Paths at which a secret may stand; `*` is any one part.
        environment: Paths at which the deployer's environment is read at launch, and kept secret.
        nodes: Paths at which something may stand that a node learns when it starts.
    """

    secrets: tuple[tuple[str, ...], ...] = ()
    environment: tuple[tuple[str, ...], ...] = ()
    nodes: tuple[tuple[str, ...], ...] = ()

    @property
    def all(self) -> tuple[tuple[str, ...], ...]:
        """Every place that may hold a reference of any kind."""
        return (*self.secrets, *self.environment, *self.nodes)

    def kept_at(self, path: Path) -> set[str]:
        """Return the namespaces whose references may stay at a path."""
        kept = {"secrets"} if is_place(path, self.secrets) else set[str]()
        if is_place(path, self.environment):
            kept |= {"env"}
        return kept | set(OF_NODES) if is_place(path, self.nodes) else kept


class Interpolator:
    """Fills in what is known of one configuration's data.

    Args:
        own_env: The file's own `env`: values as written, None for one taken from the deployer's environment.
        environ: The deployer's environment.
        run: What `run.NAME` stands for; None for what is not known yet.
        variables: Gives the value of a Prefect variable by its name, or raises; None where nothing can.
        places: Where references may stay.
        by_deployer: Whether the configuration is loaded where it is deployed from, so that what it takes from
            there must be there. A recorded one is loaded anywhere.
    """

    def __init__(
        self,
        *,
        own_env: Mapping[str, str | None],
        environ: Mapping[str, str],
        run: Mapping[str, str | None],
        variables: Callable[[str], str] | None,
        places: Places,
        by_deployer: bool,
    ) -> None:
        self._own_env = own_env
        self._environ = environ
        self._run = run
        self._variables = variables
        self._places = places
        self._by_deployer = by_deployer
        self._left = _LARGEST_RESULT

    def fill(self, data: Any, problems: list[tuple[Path, str]], path: Path = ()) -> Any:
        """Return the data with every text filled in; what cannot be is left and added to `problems`."""
        if isinstance(data, str):
            if OPENING not in data:
                return data
            try:
                return self.fill_text(data, path)
            except InterpolationError as problem:
                problems.append((path, str(problem)))
                return data
        if isinstance(data, Mapping):
            return {key: self.fill(value, problems, (*path, key)) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return [self.fill(value, problems, (*path, index)) for index, value in enumerate(data)]
        return data

    def fill_text(self, text: str, path: Path) -> str:
        """Return one text filled in; where references may stay, in the escaped form that `parse` reads."""
        kept = self._places.kept_at(path)
        own = path[1] if len(path) == 2 and path[0] == "env" else None
        if isinstance(own, int):
            # In a list of NAME=value, the name is in the text.
            own = text.partition("=")[0]
        parts = self._expand(parse(text), (own,) if isinstance(own, str) else (), kept)
        if kept:
            return render(parts)
        return "".join(str(part) for part in parts)

    def _expand(self, parts: list[Part], seen: tuple[str, ...], kept: set[str]) -> list[Part]:
        expanded: list[Part] = []
        for part in parts:
            found = [part] if isinstance(part, str) else self._value(part, seen, kept)
            expanded.extend(found)
            self._spend(len(part) if isinstance(part, str) else _COST_OF_REFERENCE)
        return expanded

    def _spend(self, characters: int) -> None:
        """Bound the work of one configuration, in which values may refer to values that refer to values."""
        self._left -= characters
        if self._left < 0:
            raise InterpolationError("becomes longer than 1 MiB when it is filled in")

    def _value(self, reference: Reference, seen: tuple[str, ...], kept: set[str]) -> list[Part]:
        if reference.namespace == "env":
            return self._of_environment(reference, seen, kept)
        if reference.namespace == "run":
            return _literal(self._of_run(reference))
        if reference.namespace == _VARIABLES:
            return _literal(self._of_prefect(reference))
        if reference.namespace not in kept:
            raise InterpolationError(_not_here(reference))
        return [reference]

    def _of_run(self, reference: Reference) -> str:
        if reference.name not in self._run:
            known = one_of(f"run.{name}" for name in self._run).replace(" or ", " and ")
            raise InterpolationError(f"'{reference.path}' is not known; there are {known}")
        value = self._run[reference.name]
        if value is None:
            raise InterpolationError(
                f"there is no {reference.path} yet; add '{reference.name}: …' to the configuration"
            )
        return value

    def _of_prefect(self, reference: Reference) -> str:
        if self._variables is None:
            raise InterpolationError(
                f"{reference.path} cannot be looked up here, without a Prefect API; write the value itself"
            )
        try:
            return self._variables(reference.name)
        except NotFoundError as error:
            raise InterpolationError(str(error)) from None

    def _of_environment(self, reference: Reference, seen: tuple[str, ...], kept: set[str]) -> list[Part]:
        name = reference.name
        # A variable that is made of itself is made of the deployer's, as in a shell.
        of_deployer = name == (seen[-1] if seen else None)
        if name in seen and not of_deployer:
            raise InterpolationError(f"env.{name} refers to itself")
        if name in self._own_env and not of_deployer:
            return self._of_own(reference, seen, kept)
        if "env" in kept and (of_deployer or not self._by_deployer or name in self._environ):
            return [reference]
        if name in self._environ:
            return _literal(self._environ[name])
        hint = nearest(name, [*self._own_env, *self._environ])
        raise InterpolationError(
            f"env.{name} is set neither under 'env' nor in the environment"
            + (f"; did you mean {one_of([hint])}?" if hint else "")
        )

    def _of_own(self, reference: Reference, seen: tuple[str, ...], kept: set[str]) -> list[Part]:
        name = reference.name
        written = self._own_env[name]
        if written is None:
            if "env" in kept:
                return [reference]
            raise InterpolationError(
                f"env.{name} comes from the deployer's environment at launch; use ${name} in the commands"
            )
        parts = self._expand(parse(written), (*seen, name), self._places.kept_at(("env", name)))
        late = {part.namespace for part in parts if isinstance(part, Reference)}
        if not late <= kept:
            what = "a secret" if late & {"secrets", "env"} else "what a node learns when it starts"
            raise InterpolationError(f"env.{name} holds {what}; use ${name} in the commands")
        # What is made of the deployer's environment stays one reference: spelled out, it would mean another
        # thing where a variable is made of itself.
        return [reference] if "env" in late else parts


def _literal(value: str) -> list[Part]:
    return [value] if value else []


def _not_here(reference: Reference) -> str:
    if reference.namespace == "secrets":
        return f"a secret cannot be kept here: {_ELSEWHERE}"
    return (
        f"{reference.path} is known only when a node starts, and cannot stand here; "
        "it can in the commands of a task, in 'env' and in 'volumes'"
    )


_LONE_DOLLAR = re.compile(r"\$(?![A-Za-z0-9_{(])")
# A command may end its patterns with a dollar; a reference stands as a word of its own.
_LONE_DOLLAR_WORD = re.compile(r"(?:^|(?<=[\s='\"]))\$(?=[\s'\";|&)]|$)")
_OF_SHELLS = {"commands", "init", "entrypoint", "setup", "build"}


def lost_references(data: Any) -> list[Path]:
    """Return the paths of texts in which a reference seems to have stood, of which only its `$` is left.

    Prefect fills in `{{ name }}` in the parameters of `prefect.yaml`, with nothing where it does not know the
    name; of `${{ secrets.NAME }}` it leaves the dollar.
    """
    return [
        path
        for path, text in texts(data)
        if (_LONE_DOLLAR_WORD if _OF_SHELLS.intersection(map(str, path)) else _LONE_DOLLAR).search(text)
    ]
