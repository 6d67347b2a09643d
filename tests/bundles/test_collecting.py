from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.bundles import Bundle, collect, collect_files
from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import ConfigurationError
from tests.bundles.files import write

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 100
)
TREES = st.dictionaries(
    st.tuples(st.sampled_from(["", "one/", "one/two/", "é\n/"]), NAMES).map(lambda it: f"{it[0]}x{it[1]}"),
    st.tuples(st.binary(max_size=50), st.sampled_from([0o644, 0o755, 0o600, 0o664])),
    min_size=1,
    max_size=6,
)


def make(directory: Path, tree: dict[str, tuple[bytes, int]]) -> None:
    for path, (content, mode) in tree.items():
        write(directory / path, content, mode)


def paths(bundle: Bundle) -> list[str]:
    return [entry.path for entry in bundle.entries]


def target_of(bundle: Bundle, path: str) -> str:
    return next(entry.target for entry in bundle.entries if entry.path == path)


@contextlib.contextmanager
def anybody() -> Iterator[None]:
    """Not root, to whom no file is unreadable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestDigest:
    @settings(max_examples=60, deadline=None)
    @given(tree=TREES)
    def test_is_the_same_in_another_directory(self, tree: dict[str, tuple[bytes, int]]) -> None:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            make(Path(one), tree)
            make(Path(other), dict(reversed(tree.items())))

            assert collect(Path(one)).digest == collect(Path(other)).digest
            assert {it.path for it in collect(Path(one)).entries if it.kind == "file"} == tree.keys()

    @settings(max_examples=60, deadline=None)
    @given(tree=TREES, data=st.data())
    def test_differs_after_any_change(self, tree: dict[str, tuple[bytes, int]], data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), tree)
            before = collect(Path(name)).digest
            path = Path(name, data.draw(st.sampled_from(sorted(tree))))
            change = data.draw(
                st.sampled_from(["content", "executable", "name", "gone", "directory", "link"])
            )
            if change == "content":
                path.write_bytes(path.read_bytes() + b"x")
            elif change == "executable":
                path.chmod(path.stat().st_mode ^ 0o100)
            elif change == "name":
                path.rename(path.with_name("another name"))
            else:
                path.unlink()
            if change == "directory":
                path.mkdir()
            if change == "link":
                path.symlink_to("somewhere")

            assert collect(Path(name)).digest != before

    def test_does_not_depend_on_the_umask_nor_on_times(self, app: Path) -> None:
        path = write(app / "sub/run.sh", "x", 0o755)
        before = collect(app).digest

        path.chmod(0o775)
        path.parent.chmod(0o775)
        os.utime(path, (0, 0))

        assert collect(app).digest == before

    def test_depends_on_whether_a_file_is_private(self, app: Path) -> None:
        path = write(app / "key", "x", 0o644)
        before = collect(app).digest

        path.chmod(0o600)

        assert collect(app).digest != before

    def test_can_be_computed_for_an_empty_directory(self, app: Path) -> None:
        assert collect(app).entries == ()


class TestFiles:
    @pytest.mark.parametrize(
        "name", ["new\nline", "tab\tand 'quote\"", "漢字 🦆", "-rf", "*", "~", "\\", "b\udcffad"], ids=repr
    )
    def test_may_have_any_name(self, app: Path, name: str) -> None:
        write(app / name / name, "x")

        assert paths(collect(app)) == [name, f"{name}/{name}"]

    def test_may_lie_deep(self, app: Path) -> None:
        directory = app
        here = os.open(app, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
            directory /= "d"
        os.close(here)

        assert len(collect(app).entries) == 1500

        os.system(f"rm -rf '{app}/d'")

    def test_that_are_sockets_or_pipes_are_left_out(self, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        os.mkfifo(app / "pipe")
        monkeypatch.chdir(app)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")

            assert paths(collect(app)) == []

    @pytest.mark.parametrize("name", ["secret", "sub/", ".dstackignore"])
    def test_that_cannot_be_read_are_named(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory).chmod(0o755)
            path = Path(directory, name)
            if name.endswith("/"):
                path.mkdir()
            else:
                path.touch()
            path.chmod(0)

            with (
                anybody(),
                pytest.raises(ConfigurationError, match="cannot be read: Permission denied") as caught,
            ):
                collect(Path(directory))

            path.chmod(0o700)
        assert str(path) in str(caught.value)
        assert ".dstackignore" in str(caught.value)

    def test_that_cannot_be_read_do_not_matter_if_they_are_ignored(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory).chmod(0o755)
            write(Path(directory, ".dstackignore"), "secret\nsub/\n")
            write(Path(directory, "secret"), mode=0)
            Path(directory, "sub").mkdir(mode=0)

            with anybody():
                assert paths(collect(Path(directory))) == [".dstackignore"]

    def test_may_come_and_go_meanwhile(self, app: Path) -> None:
        write(app / "stays", "x")
        expected = collect(app)
        over = threading.Event()

        def churn() -> None:
            while not over.is_set():
                write(app / "temporary/x/y", "y")
                shutil.rmtree(app / "temporary")

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for _ in range(200):
                bundle = collect(app)
                assert paths(bundle)[-1:] == paths(expected) or "temporary" in paths(bundle)
        finally:
            over.set()
            thread.join()
        assert collect(app) == expected

    def test_that_are_written_all_the_time_are_named(self, app: Path) -> None:
        write(app / "app.log", b"x" * 10_000_000)
        over = threading.Event()

        def grow() -> None:
            with (app / "app.log").open("ab", buffering=0) as file:
                while not over.is_set():
                    file.write(b"x")

        thread = threading.Thread(target=grow)
        thread.start()
        try:
            with pytest.raises(
                ConfigurationError, match=r"app\.log: changes while it is read.*\.dstackignore"
            ):
                collect(app)
        finally:
            over.set()
            thread.join()

    def test_must_be_in_a_directory(self, app: Path) -> None:
        with pytest.raises(ConfigurationError, match="no such file"):
            collect(app / "missing")
        with pytest.raises(ConfigurationError, match="is not a directory"):
            collect(write(app / "file"))

    def test_can_be_handed_to_another_process(self, app: Path) -> None:
        write(app / "a", "x")
        bundle = collect(app)

        assert pickle.loads(pickle.dumps(bundle)) == bundle


class TestLinks:
    def test_inside_lead_to_the_copy(self, app: Path) -> None:
        write(app / "sub/real", "x")
        (app / "absolute").symlink_to(app / "sub/real")
        (app / "sub/roundabout").symlink_to(f"../../{app.name}/sub/real")
        (app / "directory").symlink_to("sub")
        (app / "through").symlink_to("directory/real")
        (app / "sub/top").symlink_to("..")

        bundle = collect(app)

        assert target_of(bundle, "absolute") == "sub/real"
        assert target_of(bundle, "sub/roundabout") == "real"
        assert target_of(bundle, "directory") == "sub"
        assert target_of(bundle, "through") == "sub/real"
        assert target_of(bundle, "sub/top") == ".."

    def test_to_anything_else_lead_where_they_did(self, app: Path) -> None:
        write(app.parent / "models/m", "x")
        write(app / "ignored.bin")
        write(app / ".gitignore", "*.bin\n")
        (app / "models").symlink_to("../models")
        (app / "system").symlink_to("/etc/hostname")
        (app / "weights").symlink_to("ignored.bin")

        bundle = collect(app)

        assert target_of(bundle, "models") == str(app.parent / "models")
        assert target_of(bundle, "system") == "/etc/hostname"
        assert target_of(bundle, "weights") == str(app / "ignored.bin")

    @pytest.mark.parametrize("target", ["missing", "itself/..", "self", "."])
    def test_may_dangle_or_go_round(self, app: Path, target: str) -> None:
        (app / "self").symlink_to("self")
        (app / "link").symlink_to(target)

        assert paths(collect(app)) == ["link", "self"]

    def test_are_not_followed(self, app: Path) -> None:
        write(app.parent / "large/x", "x" * 1000)
        (app / "large").symlink_to("../large")

        assert collect(app).size == 0


class TestFilesOfContainers:
    def test_are_numbered_as_they_are_named(self, app: Path) -> None:
        write(app / "run.sh", "x", 0o755)
        write(app / "src/.gitignore", "*.pyc\n")
        write(app / "src/a.py")
        write(app / "src/a.pyc")
        files = [FileMapping.model_validate(it) for it in ("run.sh:/run", "src")]

        assert paths(collect_files(files, app)) == ["0", "1", "1/.gitignore", "1/a.py"]

    def test_must_not_be_devices(self, app: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"files\.0: .*neither a file nor a directory"):
            collect_files([FileMapping.model_validate("/dev/null:/x")], app)

    def test_change_the_digest(self, app: Path) -> None:
        write(app / "src/a.py", "1")
        files = [FileMapping.model_validate("src")]
        before = collect_files(files, app).digest

        write(app / "src/a.py", "2")

        assert collect_files(files, app).digest != before
