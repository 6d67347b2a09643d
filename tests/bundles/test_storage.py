"""A store shares its bundles with others by a storage, and trusts nothing that it finds there."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_dstack.bundles import Bundle, BundleStore, collect
from prefect_dstack.bundles.storage import SETTLED, unneeded
from prefect_dstack.errors import HostNotReadyError, NotFoundError
from tests.bundles.files import contents, write


class Shelf:
    """A storage in a directory, which counts what is done."""

    name = "local-file-system/shelf"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uploads = self.downloads = 0
        directory.mkdir()

    def upload(self, source: Path, file: str) -> None:
        self.uploads += 1
        shutil.copyfile(source, self.directory / file)

    def download(self, file: str, target: Path) -> None:
        self.downloads += 1
        shutil.copyfile(self.directory / file, target)

    def modified(self, file: str) -> datetime | None:
        return self.files().get(file)

    def files(self) -> Mapping[str, datetime]:
        return {
            path.name: datetime.fromtimestamp(path.stat().st_mtime, UTC) for path in self.directory.iterdir()
        }

    def remove(self, file: str) -> None:
        (self.directory / file).unlink()

    def age(self, file: str, by: timedelta) -> None:
        """Let a file be older than it is."""
        then = (datetime.now(UTC) - by).timestamp()
        os.utime(self.directory / file, (then, then))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def here(tmp_path: Path, shelf: Shelf) -> BundleStore:
    return BundleStore(tmp_path / "here/bundles", shelf)


@pytest.fixture
def there(tmp_path: Path, shelf: Shelf) -> BundleStore:
    return BundleStore(tmp_path / "there/bundles", shelf)


@pytest.fixture
def bundle(app: Path) -> Bundle:
    write(app / "run.sh", "#!/bin/sh", 0o755)
    write(app / "src/key", "k", 0o600)
    (app / "link").symlink_to("src/key")
    return collect(app)


class TestFetch:
    def test_gives_what_another_has_shared(
        self, here: BundleStore, there: BundleStore, bundle: Bundle
    ) -> None:
        expected = contents(here.put(bundle))
        here.share(bundle.digest, recorded=False)

        place = there.fetch(bundle.digest)

        assert place == there.path(bundle.digest)
        assert contents(place) == expected
        assert collect(place).digest == bundle.digest
        assert (place / "run.sh").stat().st_mode & 0o777 == 0o555
        assert there.prune(set()) == {bundle.digest}

    def test_asks_for_nothing_that_is_here(self, here: BundleStore, shelf: Shelf, bundle: Bundle) -> None:
        place = here.put(bundle)

        assert here.fetch(bundle.digest) == place
        assert shelf.downloads == 0

    def test_asks_once_for_many_replicas(
        self, here: BundleStore, there: BundleStore, shelf: Shelf, bundle: Bundle
    ) -> None:
        here.put(bundle)
        here.share(bundle.digest, recorded=False)
        found: list[Path] = []

        threads = [
            threading.Thread(target=lambda: found.append(there.fetch(bundle.digest))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert found == [there.path(bundle.digest)] * 8
        assert shelf.downloads == 1

    def test_says_where_it_has_looked(self, there: BundleStore, shelf: Shelf, bundle: Bundle) -> None:
        with pytest.raises(NotFoundError) as caught:
            there.fetch(bundle.digest)

        assert f"are neither in {there.directory} nor in {shelf.name}: apply" in str(caught.value)

    @pytest.mark.parametrize("digest", ["../../etc/passwd", "", "f" * 63])
    def test_asks_for_digests_only(self, there: BundleStore, shelf: Shelf, digest: str) -> None:
        with pytest.raises(NotFoundError, match="is not the digest"):
            there.fetch(digest)

        assert shelf.downloads == 0

    def test_finds_nothing_elsewhere_without_a_storage(self, tmp_path: Path, bundle: Bundle) -> None:
        alone = BundleStore(tmp_path / "alone")

        assert not alone.share(bundle.digest, recorded=False)
        with pytest.raises(NotFoundError, match=r"are not in .*alone: apply"):
            alone.fetch(bundle.digest)

    @pytest.mark.parametrize(
        ("tamper", "why"),
        [
            (lambda archive, other: shutil.copyfile(other, archive), "the digest of its files is"),
            (lambda archive, _: archive.write_bytes(b"#!/bin/sh"), "truncated header"),
            (lambda archive, _: os.truncate(archive, 700), ""),
        ],
        ids=["another bundle", "no archive", "a part"],
    )
    def test_refuses_what_was_not_put_there(
        self,
        tamper: Callable[[Path, Path], object],
        why: str,
        here: BundleStore,
        there: BundleStore,
        shelf: Shelf,
        bundle: Bundle,
        app: Path,
    ) -> None:
        other = collect(write(app / "run.sh", "#!/bin/sh\necho evil", 0o755).parent)
        here.put(other)
        here.share(other.digest, recorded=False)
        write(app / "run.sh", "#!/bin/sh", 0o755)
        here.put(bundle)
        here.share(bundle.digest, recorded=False)
        tamper(shelf.directory / f"{bundle.digest}.tar", shelf.directory / f"{other.digest}.tar")

        with pytest.raises(NotFoundError) as caught:
            there.fetch(bundle.digest)

        assert str(caught.value).startswith(
            f"{shelf.name}: {bundle.digest}.tar is not what was put there: {why}"
        )
        assert "delete it, and apply the configuration again" in str(caught.value)
        assert there.prune(set()) == set()
        with pytest.raises(NotFoundError):
            there.path(bundle.digest)

    def test_says_that_it_cannot_write(self, here: BundleStore, tmp_path: Path, bundle: Bundle) -> None:
        here.put(bundle)
        here.share(bundle.digest, recorded=False)
        blocked = BundleStore(write(tmp_path / "file") / "bundles", here.storage)

        with pytest.raises(HostNotReadyError, match="cannot keep the files of a revision"):
            blocked.fetch(bundle.digest)


class TestShare:
    def test_uploads_once(self, here: BundleStore, shelf: Shelf, bundle: Bundle) -> None:
        here.put(bundle)

        assert here.share(bundle.digest, recorded=False)
        assert not here.share(bundle.digest, recorded=False)
        assert shelf.uploads == 1

    def test_uploads_again_what_somebody_may_have_damaged(
        self, here: BundleStore, shelf: Shelf, bundle: Bundle
    ) -> None:
        here.put(bundle)
        here.share(bundle.digest, recorded=False)

        assert here.share(bundle.digest, recorded=True, renew=True)
        assert shelf.uploads == 2

    def test_renews_what_somebody_may_be_removing(
        self, here: BundleStore, shelf: Shelf, bundle: Bundle
    ) -> None:
        here.put(bundle)
        here.share(bundle.digest, recorded=False)
        shelf.age(f"{bundle.digest}.tar", SETTLED)

        assert not here.share(bundle.digest, recorded=True)
        assert here.share(bundle.digest, recorded=False)
        assert unneeded(shelf.files(), set()) == {}


class TestUnneeded:
    def test_are_old_archives_that_no_record_names(
        self, here: BundleStore, shelf: Shelf, bundle: Bundle, app: Path
    ) -> None:
        kept = bundle.digest
        for digest in (kept, old := collect(write(app / "run.sh", "2").parent).digest):
            write(shelf.directory / f"{digest}.tar")
            shelf.age(f"{digest}.tar", 2 * SETTLED)
        write(shelf.directory / f"{'e' * 64}.tar")
        cut_off = f"{kept}.tar.new-0123"
        for other in (cut_off, "results", f"{old}.json"):
            write(shelf.directory / other)
            shelf.age(other, 2 * SETTLED)

        assert unneeded(shelf.files(), {kept}) == {f"{old}.tar": old, cut_off: kept}
