"""The exceptions: one tree, two exit codes, one line each, and able to travel between processes."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.serializers import CompressedPickleSerializer, JSONSerializer, PickleSerializer

from prefect_dstack import errors
from prefect_dstack.errors import (
    ConfigurationError,
    NotFoundError,
    PrefectDstackError,
    UnsupportedKeyError,
    UserError,
)

# Whatever may carry an error from one process to another.
CARRIERS = {
    "pickle": (pickle.dumps, pickle.loads),
    "cloudpickle": (cloudpickle.dumps, cloudpickle.loads),
    "Prefect's pickle": (PickleSerializer().dumps, PickleSerializer().loads),
    "Prefect's compressed pickle": (CompressedPickleSerializer().dumps, CompressedPickleSerializer().loads),
    "Prefect's JSON": (JSONSerializer().dumps, JSONSerializer().loads),
}
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
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("renamed", [False, True], ids=["as raised", "with another message"])
def test_survives_the_journey_to_another_process(
    kind: type[PrefectDstackError], carrier: str, renamed: bool
) -> None:
    dumps, loads = CARRIERS[carrier]
    error = kind("what is wrong")
    if renamed:
        error = error.with_message("hello@2 failed: what is wrong; hello@1 serves on")

    again = loads(dumps(error))

    assert type(again) is kind
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code


def test_keeps_attributes_of_subclasses_on_the_journey() -> None:
    error = NotFoundError("there is no such service")
    error.add_note("a note")

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["a note"]


class TestWithMessage:
    def test_keeps_all_but_the_message(self) -> None:
        cause = ValueError("cause")
        with pytest.raises(UnsupportedKeyError) as caught:
            raise UnsupportedKeyError("is not acted on", source="f", line=3, key="k") from cause

        again = caught.value.with_message("hello@2 failed")

        assert type(again) is UnsupportedKeyError
        assert str(again) == "hello@2 failed"
        assert (again.source, again.line, again.key) == ("f", 3, "k")
        assert again.__cause__ is cause
        assert again.__traceback__ is caught.value.__traceback__

    def test_leaves_the_first_as_it_was(self) -> None:
        error = ConfigurationError("wrong", key="port")

        error.with_message("something else").line = 3

        assert (str(error), error.line) == ("port: wrong", None)


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
