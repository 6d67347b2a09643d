"""What every model of a configuration has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from prefect_dstack.configurations.interpolation import Places, escape_literals

PROBLEM = "configuration_problem"


def refuse(problem: str, *, key: str | None = None) -> NoReturn:
    """Refuse a value from within a pydantic validator.

    Args:
        problem: What is wrong and what to do; becomes the message as it is.
        key: Dotted key below the model being validated, where a rule about several keys points at one.

    Raises:
        PydanticCustomError: Always.
    """
    raise PydanticCustomError(PROBLEM, "{problem}", {"problem": problem, "key": key})


class Model(BaseModel):
    """A frozen part of a configuration that knows exactly its keys."""

    model_config = ConfigDict(
        defer_build=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    shorthand: ClassVar[tuple[str, ...]] = ()
    """The JSON types, besides a mapping, that the model is also written as."""


class ConfigurationModel(Model):
    """One whole `*.dstack.yml`.

    Two configurations are equal when their keys are; where they were read does not count.
    """

    places: ClassVar[Places] = Places()
    """Where references may stay until something is launched."""

    _directory: Path | None = PrivateAttr(default=None)
    _source_name: str | None = PrivateAttr(default=None)
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The directory that relative paths start from: the file's, else the current one."""
        return self._directory if self._directory is not None else Path.cwd()

    @property
    def source_name(self) -> str | None:
        """The file that this was read from, `<text>`, `<mapping>`, or None for a model made by hand."""
        return self._source_name

    def line_of(self, key: str) -> int | None:
        """Return the one-based line of a dotted key in the file, or of its nearest parent that has one."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            line = self._lines.get(".".join(parts[:length]))
            if line is not None:
                return line
        return None

    def placed(self, *, directory: Path | None, source_name: str | None, lines: dict[str, int]) -> Self:
        """Return the same configuration with the place it came from."""
        placed = self.model_copy()
        for attribute, value in (("_directory", directory), ("_source_name", source_name), ("_lines", lines)):
            setattr(placed, attribute, value)
        return placed

    def moved(self, directory: Path) -> Self:
        """Return the same configuration with relative paths starting from another directory."""
        return self.placed(directory=directory, source_name=self._source_name, lines=self._lines)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump to the form of the file, so that what was dumped can be loaded again."""
        written = escape_literals(handler(self), self.places.all)
        kind = getattr(self, "type", None)
        return {"type": kind, **written} if kind else written
