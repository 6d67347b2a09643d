"""The exceptions: one tree, two exit codes, one line each, and able to travel between processes."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack import errors
from prefect_dstack.errors import ConfigurationError, PrefectDstackError, UnsupportedKeyError, UserError

ALL = [getattr(errors, name) for name in errors.__all__]


def documented() -> dict[str, str]:
    """Parent by class, as the tree in the docstring draws it."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").split("```")[1].strip("\n").splitlines():
        match = re.match(r"([│├└─ ]*)(\w+)", line)
        assert match, line
        depth, name = len(match[1]), match[2]
        above = [(at, it) for at, it in above if at < depth]
        parents[name] = above[-1][1] if above else "Exception"
        above.append((depth, name))
    return parents


def test_the_documented_tree_is_the_real_one() -> None:
    assert documented() == {kind.__name__: kind.__bases__[0].__name__ for kind in ALL}


def test_every_exception_of_the_module_is_exported() -> None:
    defined = {
        name for name, it in inspect.getmembers(errors, inspect.isclass) if it.__module__ == errors.__name__
    }

    assert defined == set(errors.__all__)


@pytest.mark.parametrize("kind", ALL)
def test_what_the_user_can_mend_exits_with_2_and_the_rest_with_1(kind: type[PrefectDstackError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, UserError) else 1)
    assert issubclass(kind, PrefectDstackError)
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_survives_pickling(kind: type[PrefectDstackError], pickler: Any) -> None:
    error = kind("what is wrong")

    again = pickler.loads(pickler.dumps(error))

    assert type(again) is kind
    assert str(again) == "what is wrong"
    assert again.exit_code == error.exit_code


class TestConfigurationError:
    @pytest.mark.parametrize("kind", [ConfigurationError, UnsupportedKeyError])
    def test_keeps_its_place_when_pickled(self, kind: type[ConfigurationError]) -> None:
        error = kind("unknown key", source=Path("a.dstack.yml"), line=3, key="prot")

        again = pickle.loads(pickle.dumps(error))

        assert type(again) is kind
        assert (again.problem, again.source, again.line, again.key) == (
            "unknown key",
            "a.dstack.yml",
            3,
            "prot",
        )
        assert str(again) == str(error) == "a.dstack.yml:3: prot: unknown key"

    @pytest.mark.parametrize(
        ("place", "text"),
        [
            ({}, "wrong"),
            ({"key": "port"}, "port: wrong"),
            ({"line": 3}, "wrong"),
            ({"source": "f"}, "f: wrong"),
            ({"source": "f", "line": 3}, "f:3: wrong"),
            ({"source": "f", "key": "port"}, "f: port: wrong"),
        ],
    )
    def test_says_as_much_of_its_place_as_is_known(self, place: dict[str, object], text: str) -> None:
        assert str(ConfigurationError("wrong", **place)) == text  # type: ignore[arg-type]

    @given(
        problem=st.text(min_size=1),
        source=st.none() | st.text(min_size=1),
        line=st.none() | st.integers(1, 10**6),
        key=st.none() | st.text(min_size=1),
    )
    def test_is_the_same_after_any_number_of_journeys(
        self, problem: str, source: str | None, line: int | None, key: str | None
    ) -> None:
        error = ConfigurationError(problem, source=source, line=line, key=key)

        again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(error))))

        assert (str(again), again.problem, again.source, again.line, again.key) == (
            str(error),
            problem,
            source,
            line,
            key,
        )
