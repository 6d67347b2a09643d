from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_dstack.bundles import collect
from tests.bundles.files import write

# Git compares bytes: its `?` is not one letter of every alphabet.
NAMES = st.sampled_from(["a", "b", "ab", "a.b", "-a", "a b"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PLAIN_PARTS = ["a", "b", "ab", "a.b", r"\a"]
WILD_PARTS = ["*", "**", "?", "*b", "[ab]", "[!a]", "[", r"[\a-b]", "[[:alpha:]]*", "[]-]*"]
PARTS = st.lists(st.sampled_from([*PLAIN_PARTS, *WILD_PARTS]), min_size=1, max_size=3)
PATTERNS = st.builds(
    lambda no, first, parts, last: f"{no}{first}{'/'.join(parts)}{last}",
    st.sampled_from(["", "!"]),
    st.sampled_from(["", "/"]),
    PARTS,
    st.sampled_from(["", "/"]),
)


def files(directory: Path) -> set[str]:
    return {entry.path for entry in collect(directory).entries if entry.kind == "file"}


def make(directory: Path, paths: set[str]) -> None:
    """Write files; a path that would go through a file is left out."""
    for path in sorted(paths):
        if not (directory / path).is_dir() and not any(
            (directory / it).is_file() for it in Path(path).parents
        ):
            write(directory / path)


@settings(max_examples=60, deadline=None)
@given(
    paths=st.sets(PATHS, min_size=1, max_size=8),
    rules=st.dictionaries(
        st.sampled_from(["", "a/", "b/", "a/b/"]), st.lists(PATTERNS, max_size=4), max_size=3
    ),
)
@example(paths={"a/b", "b"}, rules={"": ["*", "!*/", "!b"]})
@example(paths={"b/ab/a"}, rules={"": ["ab", "!b"]})
@example(paths={"a", "[", "]", "[]", "[^]"}, rules={"": ["[]", "[^]", "[!]", "[^]a]"]})
@example(paths={"a/b/a", "a/a"}, rules={"": ["a/b/"], "a/": ["!b/"]})
def test_what_git_would_add_is_collected(paths: set[str], rules: dict[str, list[str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make(directory, {*paths, *(f"{place}a" for place in rules)})
        for place, patterns in rules.items():
            if (directory / place).is_dir():
                write(directory / place / ".gitignore", "".join(f"{pattern}\n" for pattern in patterns))
        subprocess.run(["git", "init", "-q", name], check=True)
        command = ["git", "-C", name, "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"]
        listed = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")

        assert files(directory) == set(filter(None, listed))


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40) | st.text(alphabet="[]!^a-z:\\\\*?/", max_size=12))
@example(text="[]")
@example(text="[^]")
def test_no_ignore_file_breaks_collecting(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name, "a/b.txt"))
        write(Path(name, ".dstackignore"), text.encode(errors="replace"))

        assert files(Path(name)) <= {".dstackignore", "a/b.txt"}


def test_dstackignore_brings_back_what_gitignore_leaves_out(app: Path) -> None:
    write(app / ".gitignore", "dist/\n*.log\n")
    write(app / ".dstackignore", "!dist/\n/README.md\n")
    for name in ("dist/app.js", "x.log", "README.md", "docs/README.md"):
        write(app / name)

    assert files(app) == {".gitignore", ".dstackignore", "dist/app.js", "docs/README.md"}


def test_configurations_and_caches_are_left_out_unless_they_are_brought_back(app: Path) -> None:
    for name in ("a.dstack.yml", "sub/.dstack.yml", ".dstack/profiles.yml", "sub/__pycache__/a.pyc", "a.yml"):
        write(app / name)
    assert files(app) == {"a.yml"}

    write(app / ".dstackignore", "!a.dstack.yml\n")

    assert files(app) == {"a.yml", "a.dstack.yml", ".dstackignore"}


def test_git_and_virtual_environments_are_left_out(app: Path) -> None:
    for name in (
        ".git/config",
        "sub/.git",
        ".venv/pyvenv.cfg",
        ".venv/bin/python",
        "env/pyvenv.cfg",
        "app.py",
    ):
        write(app / name)

    bundle = collect(app)

    assert [entry.path for entry in bundle.entries] == ["app.py", "sub"]
    assert bundle.ignored == (".git", ".venv", "env")


def test_a_virtual_environment_can_be_brought_back(app: Path) -> None:
    write(app / "env/pyvenv.cfg")
    write(app / ".dstackignore", "!env/\n")

    assert files(app) == {"env/pyvenv.cfg", ".dstackignore"}


def test_a_directory_that_ignores_itself_is_left_out_but_one_that_is_empty_stays(app: Path) -> None:
    write(app / ".cache/.gitignore", "*\n")
    write(app / ".cache/v/x")
    write(app / ".gitignore", "*.log\n")
    write(app / "logs/x.log")
    (app / "empty").mkdir()

    assert [entry.path for entry in collect(app).entries] == [".gitignore", "empty", "logs"]


def test_given_paths_are_left_out(app: Path) -> None:
    write(app / "serve.yml")
    write(app / "home/bundles/x")
    write(app / "app.py")

    found = collect(app, exclude=[app / "serve.yml", app / "home", app.parent])

    assert [entry.path for entry in found.entries] == ["app.py"]


def test_what_is_ignored_is_not_looked_at(app: Path, touched: list[str]) -> None:
    write(app / "app.py", "1")
    write(app / ".gitignore", "models/\n*.bin\n")
    for number in range(64):
        path = write(app / f"models/{number}/{number}.bin" if number % 2 else app / f"{number}.bin")
        with path.open("r+b") as file:
            file.truncate(1024**3 // 64)
    touched.clear()

    bundle = collect(app)

    assert bundle.size == len("models/\n*.bin\n1")
    assert not [path for path in touched if "models" in path or path.endswith(".bin")]


@pytest.mark.parametrize("name", [".gitignore", ".dstackignore"])
def test_an_ignore_file_may_be_a_directory(app: Path, name: str) -> None:
    write(app / name / "x")

    assert files(app) == {f"{name}/x"}
