"""References such as `${{ secrets.X }}`, `${{ env.X }}`, `${{ run.args }}` in the texts of a configuration.

`env` and `run` are filled in when a configuration is loaded. A secret stays a reference, in the few
places that may hold one, until something is launched. `$${{` stands for a literal `${{`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_dstack.configurations.messages import nearest, one_of, show

OPENING = "${{"
ESCAPED_OPENING = "$${{"
_ELSEWHERE = "put it under 'env' and use $NAME in the commands"
_REFERENCE = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NAMESPACES = ("secrets", "env", "run")
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

    def __str__(self) -> str:
        return f"${{{{ {self.namespace}.{self.name} }}}}"


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
    if not dot or namespace not in _NAMESPACES:
        if namespace in ("dstack", "groups") or namespace.startswith("groups["):
            raise InterpolationError(f"{show(inside)} is not supported here; use env, run or secrets")
        hint = nearest(namespace, _NAMESPACES)
        raise InterpolationError(
            f"{show(inside)} is not known; "
            + (
                f"did you mean '{hint}'?"
                if hint and dot
                else "write secrets.NAME, env.NAME, run.name or run.args"
            )
        )
    if not _NAME.fullmatch(name):
        raise InterpolationError(f"{show(inside)} is not a name; use letters, digits, '_' and '-'")
    return Reference(namespace, name)


def render(parts: Iterable[Part]) -> str:
    """Write parts as text that `parse` splits into the same parts."""
    text = ""
    for part in parts:
        if isinstance(part, Reference) and text.endswith("$"):
            raise InterpolationError(
                f"a '$' directly before {part} would hide it; put something between them"
            )
        text += str(part) if isinstance(part, Reference) else escape(part)
    return text


def escape(text: str) -> str:
    """Write a literal text so that nothing in it is taken for a reference."""
    return text.replace(OPENING, ESCAPED_OPENING)


def secrets_of(text: str) -> set[str]:
    """Return the names of the secrets that a text refers to."""
    return {p.name for p in parse(text) if isinstance(p, Reference) and p.namespace == "secrets"}


def resolve_text(value: str, lookup: Callable[[str], str]) -> str:
    """Fill in the secrets of a text that may hold them.

    Args:
        value: Text of an `env` value, `registry_auth`, `gateway` or `ssh_key` of a loaded configuration.
        lookup: Gives the value of a secret by its name, or raises.

    Returns:
        The text with the secrets in it. Keep it out of logs, labels and command lines.
    """
    return "".join(lookup(part.name) if isinstance(part, Reference) else part for part in parse(value))


def is_place(path: Path, places: Iterable[tuple[str, ...]]) -> bool:
    """Tell whether a path is one of the places, `*` standing for any one part."""
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


class Interpolator:
    """Fills in `env` and `run` in one configuration's data.

    Args:
        own_env: The file's own `env`: values as written, None for one taken from the deployer's environment.
        environ: The deployer's environment.
        run_name: The name of the run, or None while it has none.
        run_args: The arguments of the run, one text, quoted for a shell.
        secret_places: Paths at which a secret may stand.
    """

    def __init__(
        self,
        *,
        own_env: Mapping[str, str | None],
        environ: Mapping[str, str],
        run_name: str | None,
        run_args: str,
        secret_places: Iterable[tuple[str, ...]],
    ) -> None:
        self._own_env = own_env
        self._environ = environ
        self._run = {"name": run_name, "args": run_args}
        self._secret_places = tuple(secret_places)
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
        """Return one text filled in; where a secret may stand, in the escaped form that `parse` reads."""
        own = path[1] if len(path) == 2 and path[0] == "env" else None
        parts = self._expand(parse(text), (own,) if isinstance(own, str) else (), in_env=path[:1] == ("env",))
        if is_place(path, self._secret_places):
            return render(parts)
        for part in parts:
            if isinstance(part, Reference):
                raise InterpolationError(f"a secret cannot be kept here: {_ELSEWHERE}")
        return "".join(str(part) for part in parts)

    def _expand(self, parts: list[Part], seen: tuple[str, ...], *, in_env: bool) -> list[Part]:
        expanded: list[Part] = []
        for part in parts:
            if isinstance(part, str) or part.namespace == "secrets":
                expanded.append(part)
            elif part.namespace == "run":
                expanded.append(self._of_run(part))
            else:
                expanded.extend(self._of_environment(part.name, seen, in_env=in_env))
            self._spend(len(part) if isinstance(part, str) else _COST_OF_REFERENCE)
        return expanded

    def _spend(self, characters: int) -> None:
        """Bound the work of one configuration, in which values may refer to values that refer to values."""
        self._left -= characters
        if self._left < 0:
            raise InterpolationError("becomes longer than 1 MiB when it is filled in")

    def _of_run(self, reference: Reference) -> str:
        if reference.name not in self._run:
            raise InterpolationError(f"'run.{reference.name}' is not known; there are run.name and run.args")
        value = self._run[reference.name]
        if value is None:
            raise InterpolationError("there is no run.name yet; add 'name: …' to the configuration")
        return value

    def _of_environment(self, name: str, seen: tuple[str, ...], *, in_env: bool) -> list[Part]:
        if name in seen:
            raise InterpolationError(f"env.{name} refers to itself")
        if name in self._own_env:
            written = self._own_env[name]
            if written is None:
                raise InterpolationError(
                    f"env.{name} comes from the deployer's environment at launch; use ${name} in the commands"
                )
            parts = self._expand(parse(written), (*seen, name), in_env=in_env)
            if not in_env and any(isinstance(part, Reference) for part in parts):
                raise InterpolationError(f"env.{name} holds a secret; use ${name} in the commands")
            return parts
        if name in self._environ:
            return [self._environ[name]] if self._environ[name] else []
        hint = nearest(name, [*self._own_env, *self._environ])
        raise InterpolationError(
            f"env.{name} is set neither under 'env' nor in the environment"
            + (f"; did you mean {one_of([hint])}?" if hint else "")
        )
