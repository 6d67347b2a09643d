from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from prefect_dstack.backends.aws.cache import Cache, Memo


def test_a_value_is_fetched_once_while_it_is_young(tmp_path: Path) -> None:
    fetched: list[int] = []

    def fetch() -> list[int]:
        fetched.append(1)
        return [len(fetched)]

    cache = Cache("account", tmp_path)
    assert cache.age("key") is None
    assert [cache.get("key", 60, fetch) for _ in range(3)] == [[1], [1], [1]]
    age = cache.age("key")
    assert age is not None
    assert age < 60
    assert Cache("another account", tmp_path).get("key", 60, fetch) == [2]
    (mine, _) = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    os.utime(mine, (time.time() - 61, time.time() - 61))
    assert cache.get("key", 60, fetch) == [3]


@pytest.mark.parametrize("damage", ["", "{", "\x00\xff"])
def test_a_damaged_file_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    cache = Cache("account", tmp_path)
    cache.get("key", 60, lambda: "old")
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage.encode("latin-1"))
    assert cache.get("key", 60, lambda: "new") == "new"


def test_a_directory_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert Cache("account", blocked / "cache").get("key", 60, lambda: 1) == 1


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    cache = Cache("account", tmp_path)
    with pytest.raises(ZeroDivisionError):
        cache.get("key", 60, lambda: 1 / 0)
    assert cache.get("key", 60, lambda: 1) == 1


def test_ten_threads_make_a_value_once() -> None:
    memo: Memo[int] = Memo(60)
    made: list[int] = []
    go = Event()

    def make() -> int:
        assert go.wait(10)
        made.append(1)
        return 5

    with ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(memo.get, "key", make) for _ in range(10)]
        go.set()
        assert [future.result() for future in futures] == [5] * 10
    assert made == [1]
    memo.forget("key")
    assert memo.get("key", lambda: 6) == 6
