"""Repositories of other machines are checked out by the Git of this one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_dstack.bundles import check_out
from prefect_dstack.bundles.git import KEPT, environment_of
from prefect_dstack.configurations import RemoteRepository
from prefect_dstack.errors import ConfigurationError
from tests.bundles.repositories import commit, git, repository, serving


@pytest.fixture(autouse=True)
def own_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no helper of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return repository(tmp_path / "origin", app="one", __gitignore="kept\n", kept="tracked all the same")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "checkouts"


def remote(origin: Path, **keys: Any) -> RemoteRepository:
    return RemoteRepository(f"file://{origin}", **keys)


def test_without_more_the_newest_commit_of_the_default_branch(origin: Path, place: Path) -> None:
    tree = check_out(remote(origin), place)

    assert {path.name for path in tree.iterdir()} == {"app", ".gitignore", "kept"}
    assert tree.name == git(origin, "rev-parse", "HEAD")
    second = commit(origin, app="two")
    assert check_out(remote(origin), place).name == second
    assert (tree / "app").read_text() == "one"


def test_a_branch(origin: Path, place: Path) -> None:
    git(origin, "checkout", "--quiet", "-b", "feature/x")
    wanted = commit(origin, app="feature")
    git(origin, "checkout", "--quiet", "main")

    tree = check_out(remote(origin, branch="feature/x"), place)

    assert (tree.name, (tree / "app").read_text()) == (wanted, "feature")


@pytest.mark.parametrize("digits", [40, 10])
def test_an_earlier_commit(origin: Path, place: Path, digits: int) -> None:
    first = git(origin, "rev-parse", "HEAD")
    commit(origin, app="two")

    tree = check_out(remote(origin, commit=first[:digits]), place)

    assert (tree.name, (tree / "app").read_text()) == (first, "one")


def test_a_commit_must_be_on_the_branch_that_is_named(origin: Path, place: Path) -> None:
    first = git(origin, "rev-parse", "HEAD")
    git(origin, "checkout", "--quiet", "-b", "other")
    second = commit(origin, app="two")
    git(origin, "checkout", "--quiet", "main")

    assert check_out(remote(origin, branch="other", commit=first), place).name == first
    with pytest.raises(ConfigurationError, match=f"has no commit {second}"):
        check_out(remote(origin, branch="main", commit=second), place)


def test_a_commit_that_is_there_needs_nobody(origin: Path, place: Path) -> None:
    first = git(origin, "rev-parse", "HEAD")
    tree = check_out(remote(origin, commit=first), place)
    wanted = remote(origin, commit=first)
    origin.rename(origin.with_name("gone"))

    assert check_out(wanted, place) == tree


def test_a_branch_that_has_not_moved_is_not_fetched_again(
    origin: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = remote(origin, branch="main")
    tree = check_out(wanted, place)
    # The list of branches can still be had, but no commit.
    monkeypatch.setattr("prefect_dstack.bundles.git._Git.fetch", None)

    assert check_out(wanted, place) == tree


def test_submodules_come_along(
    origin: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Git asks for this where a submodule is a directory.
    for name, value in {"COUNT": "1", "KEY_0": "protocol.file.allow", "VALUE_0": "always"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    other = repository(tmp_path / "other", part="of another")
    git(origin, "submodule", "--quiet", "add", f"file://{other}", "sub")
    commit(origin)

    assert (check_out(remote(origin), place) / "sub" / "part").read_text() == "of another"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"branch": "nothing"}, "has no branch 'nothing'"),
        ({"commit": "0123abc"}, "has no commit 0123abc"),
        ({"commit": "0" * 40}, "has no commit 0000"),
    ],
)
def test_what_is_not_there_is_named_and_leaves_nothing(
    origin: Path, place: Path, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        check_out(remote(origin, **keys), place)

    assert str(raised.value).startswith(f"repos.0: file://{origin} ")
    assert [path.name for path in place.glob("*/*")] == [".lock"]


def test_a_repository_that_is_not_there_is_said_in_the_words_of_git(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing.* cannot be fetched: .*does not"):
        check_out(RemoteRepository(f"file://{tmp_path}/nothing"), place)


def test_several_at_once_share_one(origin: Path, place: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        trees = {pool.submit(check_out, remote(origin), place).result() for _ in range(4)}

    assert len(trees) == 1


def test_what_nobody_used_for_a_day_is_removed(origin: Path, place: Path) -> None:
    first = check_out(remote(origin), place)
    commit(origin, app="two")
    second = check_out(remote(origin), place)
    other = check_out(remote(repository(origin.with_name("other"), app="x")), place)
    for tree in (first, other):
        os.utime(tree, (time.time() - KEPT - 1,) * 2)

    check_out(remote(origin), place)

    assert [tree.exists() for tree in (first, other, second)] == [False, False, True]


class TestCredentials:
    @pytest.fixture
    def url(self, origin: Path, tmp_path: Path) -> Iterator[str]:
        git(tmp_path, "clone", "--quiet", "--bare", str(origin), "bare.git")
        with serving(tmp_path / "bare.git", "git", "hunter'2 $x") as url:
            yield url

    def test_open_a_private_repository(self, url: str, place: Path) -> None:
        tree = check_out(RemoteRepository(url, username="git", password=SecretStr("hunter'2 $x")), place)

        assert (tree / "app").read_text() == "one"
        assert not [path for path in place.rglob("*") if path.is_file() and "hunter" in path.read_text()]

    @pytest.mark.parametrize("password", [None, "wrong"])
    def test_that_are_missing_or_wrong_end_at_once(self, url: str, place: Path, password: str | None) -> None:
        remote = RemoteRepository(url, username="git", password=SecretStr(password) if password else None)

        with pytest.raises(ConfigurationError, match="cannot be fetched") as raised:
            check_out(remote, place)

        assert "hunter" not in str(raised.value)
        assert "wrong" not in str(raised.value)

    def test_of_the_user_are_used_where_the_configuration_has_none(
        self, url: str, place: Path, tmp_path: Path
    ) -> None:
        host = url.removeprefix("http://").partition("/")[0]
        (tmp_path / ".git-credentials").write_text(f"http://git:hunter%272%20%24x@{host}\n")
        (tmp_path / ".gitconfig").write_text("[credential]\nhelper = store\n")

        assert (check_out(RemoteRepository(url), place) / "app").read_text() == "one"

    def test_are_for_their_own_host_only(self) -> None:
        remote = RemoteRepository("https://a.example:8443/x.git", username="u", password=SecretStr("p"))

        environment = environment_of(
            remote, {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "a.b", "GIT_DIR": "/x"}
        )

        assert environment["GIT_CONFIG_COUNT"] == "3"
        assert {environment[f"GIT_CONFIG_KEY_{number}"] for number in (1, 2)} == {
            "credential.https://a.example:8443.helper"
        }
        assert "GIT_DIR" not in environment
        assert "p" not in [value for name, value in environment.items() if name.startswith("GIT_")]
