"""Several bundles become one, in which each file is where it belongs."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.bundles import Entry, arrange
from prefect_dstack.errors import ConfigurationError

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.one_of(st.just("."), PATHS, PATHS.map(lambda path: f"./{path}/"))


def file(path: str, digest: str = "0") -> Entry:
    return Entry(path, "file", f"/from/{path}", 0o644, digest=digest)


@given(st.lists(st.tuples(TARGETS, st.lists(PATHS, unique=True, max_size=4)), max_size=3))
def test_every_file_is_below_directories_and_only_there(parts: list[tuple[str, list[str]]]) -> None:
    wanted: dict[str, str] = {}
    for number, (target, paths) in enumerate(parts):
        wanted |= {posixpath.normpath(f"{target}/{path}"): str(number) for path in paths}
    above = {path[:end] for path in wanted for end, character in enumerate(path) if character == "/"}

    def arranged() -> list[Entry]:
        made = [(target, [file(path, str(n)) for path in paths]) for n, (target, paths) in enumerate(parts)]
        return list(arrange(made).entries)

    if above & wanted.keys():
        with pytest.raises(ConfigurationError, match="a file and a directory at once"):
            arranged()
        return
    entries = arranged()

    assert {it.path: it.digest for it in entries if it.kind == "file"} == wanted
    assert {it.path for it in entries if it.kind == "directory"} == above
    assert [it.path for it in entries] == sorted(wanted.keys() | above)


def test_what_is_at_the_top_stays_as_it_was() -> None:
    entries = (Entry("a", "directory", "/from/a", 0o700), file("a/b"))

    assert arrange([(".", entries)]).entries == entries


def test_a_file_alone_takes_the_name_of_its_place() -> None:
    assert [it.path for it in arrange([("sub/app.py", [file(".")])]).entries] == ["sub", "sub/app.py"]
