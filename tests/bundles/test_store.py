from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.bundles import (
    Bundle,
    BundleStore,
    collect,
    collect_files,
    digests,
    stored_entries,
)
from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import ConfigurationError, HostNotReadyError, NotFoundError
from prefect_dstack.hosts.upload import pack_files
from tests.bundles.files import contents, disk_use, write
from tests.polling import wait_until

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def bundle(app: Path) -> Bundle:
    write(app / "run.sh", "#!/bin/sh", 0o755)
    write(app / "src/deep/a.py", "a")
    write(app / "src/key", "k", 0o600)
    (app / "src/link").symlink_to("deep/a.py")
    (app / "logs").mkdir()
    return collect(app)


def stored(store: BundleStore) -> list[str]:
    return sorted(place.name for place in store.directory.iterdir() if not place.name.startswith("."))


def put_and_prune(home: Path, app: Path, seed: int) -> None:
    """What many processes do at once: each puts a shared and an own bundle, and removes the others."""
    store = BundleStore(home)
    for number in range(10):
        own = write(app.with_name(f"own-{seed}") / "app.py", f"{seed} {number}").parent
        with store.holding(collect(app)) as shared, store.holding(collect(own)) as mine:
            store.prune(set())
            assert contents(shared) == contents(app)
            assert contents(mine) == contents(own)


class TestPut:
    def test_keeps_a_copy_that_looks_the_same(self, store: BundleStore, app: Path, bundle: Bundle) -> None:
        place = store.put(bundle)

        assert place == store.path(bundle.digest) == store.directory / bundle.digest
        assert contents(place) == contents(app)
        assert collect(place).digest == bundle.digest
        assert (place / "run.sh").stat().st_mtime_ns == (app / "run.sh").stat().st_mtime_ns

    def test_makes_it_read_only(self, store: BundleStore, bundle: Bundle) -> None:
        place = store.put(bundle)

        modes = [path.lstat().st_mode for path in [place, *place.rglob("*")] if not path.is_symlink()]
        assert not any(mode & 0o222 for mode in modes)

    def test_does_not_see_later_edits(self, store: BundleStore, app: Path, bundle: Bundle) -> None:
        place = store.put(bundle)

        with (app / "src/deep/a.py").open("r+") as file:
            file.write("edited")

        assert (place / "src/deep/a.py").read_text() == "a"

    def test_does_nothing_the_second_time(self, store: BundleStore, app: Path, bundle: Bundle) -> None:
        store.put(bundle)
        shutil.rmtree(app)

        assert store.put(bundle).is_dir()

    def test_keeps_equal_files_once(self, store: BundleStore, app: Path) -> None:
        write(app / "large", "x" * 100_000)
        write(app / "same", "x" * 100_000)
        first = store.put(collect(app))
        write(app / "small", "y")
        second = store.put(collect(app))

        assert disk_use(store.directory) == 100_001
        assert (first / "large").samefile(second / "same")

    def test_keeps_copies_where_there_cannot_be_another_name(
        self, store: BundleStore, app: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise OSError(31, "Too many links")

        monkeypatch.setattr(os, "link", refuse)

        assert contents(store.put(bundle)) == contents(app)

    def test_waits_for_an_editor_that_writes_a_new_file_in_the_place_of_the_old(
        self, store: BundleStore, app: Path, bundle: Bundle
    ) -> None:
        (app / "run.sh").rename(app / "backup")
        timer = threading.Timer(0.05, (app / "backup").rename, [app / "run.sh"])
        timer.start()

        assert (store.put(bundle) / "run.sh").read_text() == "#!/bin/sh"
        timer.join()

    @pytest.mark.parametrize("change", ["edited", "gone", "link", "pipe"])
    def test_names_a_file_that_has_changed(
        self, store: BundleStore, app: Path, bundle: Bundle, change: str
    ) -> None:
        path = app / "src/deep/a.py"
        path.unlink()
        if change == "edited":
            path.write_text("b")
        elif change == "link":
            path.symlink_to("/etc/passwd")
        elif change == "pipe":
            os.mkfifo(path)

        with pytest.raises(ConfigurationError, match=r"a\.py: has changed since it was read: apply again"):
            store.put(bundle)

        assert stored(store) == []
        store.prune(set())
        assert disk_use(store.directory) == 0

    def test_says_why_it_cannot_write(self, tmp_path: Path, bundle: Bundle) -> None:
        store = BundleStore(write(tmp_path / "file") / "bundles")

        with pytest.raises(
            HostNotReadyError, match=r"cannot keep the files of a revision: .*Not a directory"
        ):
            store.put(bundle)

    def test_leaves_nothing_of_a_copy_that_was_interrupted(
        self, store: BundleStore, app: Path, bundle: Bundle, tmp_path: Path
    ) -> None:
        for number in range(2000):
            write(app / f"many/{number}", f"{number}")
        code = (
            "import sys; from pathlib import Path; from prefect_dstack.bundles import BundleStore, collect\n"
            "BundleStore(Path(sys.argv[1])).put(collect(Path(sys.argv[2])))"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(store.directory), str(app)])
        wait_until(lambda: list(store.directory.glob(".new-*")), interval=0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()

        store.prune(set())
        assert disk_use(store.directory) == 0
        assert not list(store.directory.glob(".new-*"))

    def test_can_be_done_by_many_processes_at_once(
        self, store: BundleStore, app: Path, bundle: Bundle
    ) -> None:
        processes = [
            SPAWN.Process(target=put_and_prune, args=(store.directory, app, seed)) for seed in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()

        assert [process.exitcode for process in processes] == [0] * 4
        store.prune(set())
        assert disk_use(store.directory) == 0


class TestPath:
    @pytest.mark.parametrize("digest", ["0" * 64, "../../etc", "", ".files"])
    def test_refuses_what_is_not_there(self, store: BundleStore, bundle: Bundle, digest: str) -> None:
        store.put(bundle)

        with pytest.raises(NotFoundError):
            store.path(digest)
        with pytest.raises(NotFoundError):
            store.checkout(digest, store.directory.parent / "replica")


class TestCheckout:
    def test_may_be_written_to(self, store: BundleStore, app: Path, bundle: Bundle, tmp_path: Path) -> None:
        place = store.put(bundle)
        replica = store.checkout(bundle.digest, tmp_path / "replica")
        assert contents(replica) == contents(app)
        assert (replica / "run.sh").stat().st_mode & 0o777 == 0o755
        assert (replica / "src/key").stat().st_mode & 0o777 == 0o600

        with (replica / "src/deep/a.py").open("r+") as file:
            file.write("written")
        write(replica / "logs/today", "x")
        (replica / "run.sh").unlink()

        assert contents(place) == contents(app)
        assert contents(store.checkout(bundle.digest, tmp_path / "another")) == contents(app)

    def test_is_found_again_with_what_was_written(
        self, store: BundleStore, bundle: Bundle, tmp_path: Path
    ) -> None:
        store.put(bundle)
        write(store.checkout(bundle.digest, tmp_path / "replica") / "db", "rows")

        assert (store.checkout(bundle.digest, tmp_path / "replica") / "db").read_text() == "rows"

    def test_leads_its_links_to_itself(self, store: BundleStore, app: Path, tmp_path: Path) -> None:
        write(app / "config", "old")
        (app / "current").symlink_to(app / "config")
        digest = collect(app).digest
        store.put(collect(app))
        write(app / "config", "new")

        assert (store.checkout(digest, tmp_path / "replica") / "current").read_text() == "old"

    def test_does_not_need_the_original(
        self, store: BundleStore, app: Path, bundle: Bundle, tmp_path: Path
    ) -> None:
        store.put(bundle)
        expected = contents(app)
        shutil.rmtree(app)

        assert contents(store.checkout(bundle.digest, tmp_path / "replica")) == expected

    @settings(max_examples=30, deadline=None)
    @given(
        names=st.sets(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=8))
    )
    def test_has_every_file_whatever_its_name(self, names: set[str]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            app, store = Path(directory, "app"), BundleStore(Path(directory, "bundles"))
            for name in names:
                write(app / f"é\n/x{name}", name)
            app.mkdir(exist_ok=True)
            bundle = collect(app)
            store.put(bundle)

            assert contents(store.checkout(bundle.digest, Path(directory, "replica"))) == contents(app)
            store.prune(set())


class TestPrune:
    def test_removes_all_but_what_is_kept(self, store: BundleStore, app: Path) -> None:
        first, second, third = (
            store.put(collect(write(app / "app.py", "x" * size).parent)).name for size in (1000, 2000, 3000)
        )

        assert store.prune({second}) == {first, third}

        assert stored(store) == [second]
        assert disk_use(store.directory) == 2000
        assert (store.path(second) / "app.py").stat().st_size == 2000

    def test_leaves_what_is_not_among_those_it_is_asked_about(self, store: BundleStore, app: Path) -> None:
        first, second, third = (
            store.put(collect(write(app / "app.py", "x" * size).parent)).name for size in (1000, 2000, 3000)
        )

        assert store.prune({second}, among={first, second, "f" * 64}) == {first}

        assert stored(store) == sorted([second, third])

    def test_leaves_nothing_if_nothing_is_kept(
        self, store: BundleStore, app: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(digests, "SETTLED", -60.0)
        store.put(collect(app, cache=store.cache))
        assert disk_use(store.cache) > 0

        store.prune(set())

        assert stored(store) == []
        assert disk_use(store.directory) == 0
        assert store.prune(set()) == set()

    def test_makes_nothing_where_nothing_is(self, store: BundleStore) -> None:
        assert store.superfluous(set()) == set()
        assert store.prune(set()) == set()
        assert not store.directory.exists()

    def test_leaves_what_somebody_holds(self, store: BundleStore, bundle: Bundle) -> None:
        with store.holding(bundle) as place, BundleStore(store.directory).holding(bundle):
            assert store.superfluous(set()) == set()
            assert store.prune(set()) == set()
            assert place.is_dir()

        assert store.superfluous({bundle.digest}) == set()
        assert store.superfluous(set()) == {bundle.digest}
        assert store.prune(set()) == {bundle.digest}

    def test_removes_what_a_dead_process_held(self, store: BundleStore, app: Path, bundle: Bundle) -> None:
        code = (
            "import sys; from pathlib import Path; from prefect_dstack.bundles import BundleStore, collect\n"
            "with BundleStore(Path(sys.argv[1])).holding(collect(Path(sys.argv[2]))):\n"
            "    print('held', flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(store.directory), str(app)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            assert store.prune(set()) == set()
            process.kill()

        assert store.prune(set()) == {bundle.digest}

    def test_does_not_disturb_a_replica(
        self, store: BundleStore, app: Path, bundle: Bundle, tmp_path: Path
    ) -> None:
        store.put(bundle)
        replica = store.checkout(bundle.digest, tmp_path / "replica")

        store.prune(set())

        assert contents(replica) == contents(app)

    def test_forgets_digests_that_nobody_has_asked_for(
        self, store: BundleStore, app: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(digests, "SETTLED", -60.0)
        store.put(collect(app, cache=store.cache))
        old = write(store.cache / "old.json", "{}")
        os.utime(old, (0, 0))

        store.prune({bundle.digest})

        assert not old.exists()
        assert len(list(store.cache.iterdir())) == 1


class TestFilesOfContainers:
    def test_are_packed_as_they_were(self, store: BundleStore, app: Path) -> None:
        write(app / "run.sh", "x", 0o755)
        write(app / "src/.gitignore", "*.pyc\n")
        write(app / "src/a.py", "a")
        write(app / "src/a.pyc")
        (app / "src/link").symlink_to("a.py")
        files = [FileMapping.model_validate(it) for it in ("run.sh:/run", "src")]
        bundle = collect_files(files, app)
        with pack_files(files, bundle.entries, "/app") as archive:
            expected = archive.read()
        place = store.put(bundle)
        shutil.rmtree(app)

        with pack_files(files, stored_entries(place), "/app") as archive:
            packed = archive.read()

        assert members(packed) == members(expected)
        assert members(packed)["app/src/a.py"] == (0o644, b"a", "")
        assert members(packed)["run"] == (0o755, b"x", "")


def members(archive: bytes) -> dict[str, tuple[int, bytes, str]]:
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        found = {}
        for member in opened:
            content = opened.extractfile(member) if member.isreg() else None
            found[member.name] = (member.mode, content.read() if content else b"", member.linkname)
        return found


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A directory of a file system whose copies share their blocks."""
    image, place = tmp_path / "image", tmp_path / "btrfs"
    if os.geteuid() != 0 or not shutil.which("mkfs.btrfs"):
        pytest.skip("needs root and mkfs.btrfs")
    with image.open("wb") as file:
        file.truncate(256 * 1024**2)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False).returncode != 0:
        pytest.skip("no loop device can be mounted")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_copies_share_their_blocks_where_the_file_system_can(
    btrfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write(btrfs / "app/large", os.urandom(20 * 1024**2)).parent
    store = BundleStore(btrfs / "bundles")
    os.sync()
    before = os.statvfs(btrfs)
    monkeypatch.setattr(shutil, "copyfileobj", None)

    store.put(collect(app))
    replicas = [store.checkout(collect(app).digest, btrfs / f"replica-{number}") for number in range(3)]

    assert all(contents(replica) == contents(app) for replica in replicas)
    with (replicas[0] / "large").open("r+b") as file:
        file.write(b"changed")
    assert contents(replicas[1]) == contents(store.path(collect(app).digest)) == contents(app)
    os.sync()
    assert before.f_bavail - os.statvfs(btrfs).f_bavail < 10 * 1024**2 // before.f_bsize


def test_nobody_else_reads_the_copies(app: Path, store: BundleStore) -> None:
    write(app / ".env", "TOKEN=hunter2")
    store.put(collect(app, cache=store.cache))

    assert store.directory.stat().st_mode & 0o777 == 0o700
