from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefect_dstack.bundles import BundleStore, collect, digests
from tests.bundles.files import write


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is as if nobody had written it for a while."""
    monkeypatch.setattr(digests, "SETTLED", -60.0)


@pytest.fixture
def cache(store: BundleStore) -> Path:
    return store.cache


@pytest.mark.usefixtures("settled")
class TestFilesThatHaveNotChanged:
    def test_are_not_read_again(self, app: Path, cache: Path, touched: list[str]) -> None:
        for number in range(20):
            write(app / f"{number}.py", str(number))
        first = collect(app, cache=cache)
        touched.clear()

        assert collect(app, cache=cache) == first
        assert not [path for path in touched if path.endswith(".py")]

    @pytest.mark.parametrize("keep_times", [True, False])
    def test_do_not_hide_one_that_has(self, app: Path, cache: Path, keep_times: bool) -> None:
        path = write(app / "a.py", "one")
        other = write(app / "b.py", "one")
        first = collect(app, cache=cache)
        status = path.stat()

        write(path, "two")
        if keep_times:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

        assert collect(app, cache=cache).digest == collect(app).digest != first.digest
        assert other.exists()

    def test_do_not_hide_one_that_was_put_in_the_place_of_another(self, app: Path, cache: Path) -> None:
        write(app / "a", "one")
        os.link(write(app / "b", "two"), app / "c")
        collect(app, cache=cache)

        (app / "c").rename(app / "a")
        (app / "b").replace(app / "a")

        assert collect(app, cache=cache).digest == collect(app).digest

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": 1}', "\udcff"])
    def test_are_read_again_if_what_was_remembered_is_damaged(
        self, app: Path, cache: Path, damage: str
    ) -> None:
        write(app / "a", "one")
        first = collect(app, cache=cache)
        (remembered,) = cache.iterdir()
        remembered.write_bytes(os.fsencode(damage))

        assert collect(app, cache=cache) == first
        assert remembered.stat().st_size > 20

    def test_are_forgotten_when_they_are_gone(self, app: Path, cache: Path) -> None:
        write(app / "a", "one")
        write(app / "b", "two")
        collect(app, cache=cache)
        (app / "a").unlink()
        collect(app, cache=cache)

        (remembered,) = cache.iterdir()
        assert b'/a"' not in remembered.read_bytes()

    def test_of_any_name_are_remembered(self, app: Path, cache: Path, touched: list[str]) -> None:
        write(app / "b\udcff\n", "x")
        first = collect(app, cache=cache)
        touched.clear()

        assert collect(app, cache=cache) == first
        assert not [path for path in touched if "b\udcff" in path]


def test_a_file_that_was_written_just_now_is_read_again(app: Path, cache: Path, touched: list[str]) -> None:
    write(app / "a.py", "one")
    collect(app, cache=cache)
    touched.clear()
    collect(app, cache=cache)

    assert [path for path in touched if path.endswith("a.py")]


def test_what_cannot_be_remembered_is_no_error(app: Path, tmp_path: Path) -> None:
    write(app / "a.py", "one")

    assert collect(app, cache=write(tmp_path / "file") / "cache").entries
