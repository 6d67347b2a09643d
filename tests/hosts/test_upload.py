from __future__ import annotations

import os
import string
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_dstack.bundles import collect_files
from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.upload import pack_files


def write(path: Path, text: str = "", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def packed(
    directory: Path, *files: str, working_dir: str = "/app", home: str | None = None
) -> dict[str, tarfile.TarInfo]:
    mappings = [FileMapping.model_validate(file) for file in files]
    entries = collect_files(mappings, directory).entries
    with (
        pack_files(mappings, entries, working_dir, home=home) as stream,
        tarfile.open(fileobj=stream) as archive,
    ):
        return {member.name: member for member in archive.getmembers()}


def test_files_go_where_they_are_sent_with_their_modes(tmp_path: Path) -> None:
    write(tmp_path / "run.sh", "#!/bin/sh", 0o755)
    write(tmp_path / "src/deep/a.py", "a", 0o600)
    members = packed(tmp_path, "run.sh:/usr/local/bin/run", "src")
    assert members.keys() == {"usr/local/bin/run", "app/src/deep", "app/src/deep/a.py"}
    assert members["usr/local/bin/run"].mode == 0o755
    assert members["app/src/deep/a.py"].mode == 0o600
    assert {(member.uid, member.gid, member.uname) for member in members.values()} == {(0, 0, "")}


def test_the_directory_itself_may_be_the_working_directory(tmp_path: Path) -> None:
    write(tmp_path / "a")
    assert packed(tmp_path, ".").keys() == {"app/a"}
    assert packed(tmp_path, ".:/").keys() == {"a"}


def test_ignored_files_stay_here(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".gitignore", "*.pyc\n__pycache__/\n/models/*\n!/models/small.bin\n")
    write(tmp_path / "src/.gitignore", "secret.txt\n!keep.pyc\n")
    for name in (
        "src/a.py",
        "src/a.pyc",
        "src/keep.pyc",
        "src/__pycache__/x",
        "src/secret.txt",
        "secret.txt",
        "models/big.bin",
        "models/small.bin",
        ".git/config",
    ):
        write(tmp_path / name)
    files = {name for name, member in packed(tmp_path, ".").items() if member.isfile()}
    assert files == {
        "app/.gitignore",
        "app/src/.gitignore",
        "app/src/a.py",
        "app/src/keep.pyc",
        "app/secret.txt",
        "app/models/small.bin",
    }


def test_the_ignore_files_above_count_up_to_the_repository(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "*\n")
    repository = tmp_path / "repository"
    (repository / ".git").mkdir(parents=True)
    write(repository / ".gitignore", "*.pyc\n")
    write(repository / "src/a.py")
    write(repository / "src/a.pyc")
    assert packed(repository, "src").keys() == {"app/src/a.py"}


def test_what_is_named_is_copied_even_if_it_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".gitignore", "dist/\n.env\n")
    write(tmp_path / "dist/app.whl")
    write(tmp_path / ".env")
    assert packed(tmp_path, "dist", ".env").keys() == {"app/dist/app.whl", "app/.env"}


def test_outside_a_repository_only_the_ignore_files_inside_count(tmp_path: Path) -> None:
    write(tmp_path / ".gitignore", "a\n")
    write(tmp_path / "src/a")
    write(tmp_path / "src/.dstackignore", "b\n")
    write(tmp_path / "src/b")
    assert packed(tmp_path, "src").keys() == {"app/src/a", "app/src/.dstackignore"}


def test_links_inside_stay_links(tmp_path: Path) -> None:
    write(tmp_path / "src/a/real", "x")
    (tmp_path / "src/b").mkdir()
    (tmp_path / "src/b/link").symlink_to("../a/real")
    (tmp_path / "src/dangling").symlink_to("missing")
    members = packed(tmp_path, "src")
    assert members["app/src/b/link"].linkname == "../a/real"
    assert members["app/src/dangling"].issym()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "../x/../../outside"])
def test_links_that_lead_out_are_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path / "outside")
    (tmp_path / "src/x").mkdir(parents=True)
    (tmp_path / "src/x/link").symlink_to(target if target.startswith("/") else f"../{target}")
    with pytest.raises(ConfigurationError, match=r"files\.0: .*link leads out") as caught:
        packed(tmp_path, "src")
    assert caught.value.key == "files.0"


def test_an_ignored_link_may_lead_anywhere(tmp_path: Path) -> None:
    write(tmp_path / "src/.gitignore", "link\n")
    (tmp_path / "src/link").symlink_to("/etc/passwd")
    assert packed(tmp_path, "src").keys() == {"app/src/.gitignore"}


def test_a_file_that_is_itself_a_link_is_copied_as_what_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path / "real", "content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert packed(tmp_path, "link")["app/link"].size == 7


def test_both_names_of_one_file_are_whole(tmp_path: Path) -> None:
    write(tmp_path / "src/a", "content")
    os.link(tmp_path / "src/a", tmp_path / "src/b")
    members = packed(tmp_path, "src")
    assert all(member.isreg() and member.size == 7 for member in members.values())


def test_pipes_and_sockets_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "src/a")
    os.mkfifo(tmp_path / "src/pipe")
    assert packed(tmp_path, "src").keys() == {"app/src/a"}


def test_a_home_directory_is_that_of_either_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    write(tmp_path / "me/.netrc")
    write(tmp_path / "tools/a")
    members = packed(tmp_path, "~/.netrc", "tools:~/bin", home="/home/app")
    assert members.keys() == {"home/app/.netrc", "home/app/bin/a"}


@pytest.mark.parametrize(("path", "home"), [("~/here", "/"), ("//here", None), ("~/here", "//")])
def test_slashes_at_the_start_are_one(tmp_path: Path, path: str, home: str | None) -> None:
    write(tmp_path / "here")
    assert packed(tmp_path, f"here:{path}", home=home).keys() == {"here"}


@pytest.mark.parametrize("path", ["~other/x", "~/../x"])
def test_a_home_directory_is_no_way_out(tmp_path: Path, path: str) -> None:
    write(tmp_path / "here")
    with pytest.raises(ConfigurationError):
        packed(tmp_path, f"here:{path}", home="/home/app")


@pytest.mark.parametrize(
    ("file", "problem"),
    [("missing", "there is no such file"), ("here:../up", r"'\.\.'"), ("here:~/x", "the whole path")],
)
def test_what_cannot_be_copied_is_an_error_with_its_key(tmp_path: Path, file: str, problem: str) -> None:
    write(tmp_path / "here")
    with pytest.raises(ConfigurationError, match=problem) as caught:
        packed(tmp_path, "here", file)
    assert caught.value.key == "files.1"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(patterns=st.lists(st.text(string.ascii_letters + "*?!/[]#\\ ._-", max_size=12), max_size=6))
def test_no_pattern_breaks_packing(tmp_path: Path, patterns: list[str]) -> None:
    write(tmp_path / "src/a/b.txt")
    write(tmp_path / "src/.gitignore", "\n".join(patterns))
    assert all(name.startswith("app/src/") for name in packed(tmp_path, "src"))
