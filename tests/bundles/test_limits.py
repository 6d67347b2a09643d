from __future__ import annotations

from pathlib import Path

import pytest

from prefect_dstack.bundles import Limit, collect, collect_files
from prefect_dstack.configurations import FileMapping
from prefect_dstack.errors import ConfigurationError
from tests.bundles.files import write


def sparse(path: Path, size: int) -> None:
    with write(path).open("r+b") as file:
        file.truncate(size)


def test_too_many_bytes_are_refused_before_they_are_read(app: Path, touched: list[str]) -> None:
    sparse(app / "models/large/weights.bin", 800 * 1024**2)
    sparse(app / "data/one", 60 * 1024**2)
    sparse(app / "data/two", 60 * 1024**2)
    sparse(app / "data/three", 50 * 1024**2)
    sparse(app / "core", 100 * 1024**2)
    write(app / "app.py")
    touched.clear()

    with pytest.raises(ConfigurationError) as caught:
        collect(app)

    assert str(caught.value) == (
        f"{app}: its files come to 1.04 GB in 9 files and directories, "
        "and a revision keeps a copy of at most 500 MB in 10,000; "
        "the most is in models/large/weights.bin (800 MB), data (170 MB), core (100 MB): "
        "name what it does not need in .dstackignore there, "
        "or keep large models elsewhere and refer to them by their absolute path"
    )
    assert not [path for path in touched if path.endswith("weights.bin")]


def test_too_many_files_are_refused(app: Path) -> None:
    for number in range(30):
        write(app / f"web/modules/{number % 3}/{number}")
        write(app / f"docs/{number % 10}")

    with pytest.raises(ConfigurationError, match=r"34 files\), docs \(11 files\): name"):
        collect(app, limit=Limit(files=20))


def test_not_all_of_very_many_are_counted(app: Path, touched: list[str]) -> None:
    for number in range(50):
        write(app / f"{number:02}/x")
    touched.clear()

    with pytest.raises(ConfigurationError, match="more than 0 bytes in 21 files and directories"):
        collect(app, limit=Limit(files=2))

    assert len(touched) < 50


def test_at_the_limit_all_is_well(app: Path) -> None:
    write(app / "a", "x" * 10)
    write(app / "b", "x" * 10)

    assert collect(app, limit=Limit(size=20, files=2)).size == 20
    with pytest.raises(ConfigurationError, match="20 bytes"):
        collect(app, limit=Limit(size=19))


def test_the_files_of_a_container_count_together(app: Path) -> None:
    write(app / "a", "x" * 10)
    write(app / "b/c", "x" * 10)
    files = [FileMapping.model_validate(it) for it in "ab"]

    with pytest.raises(ConfigurationError, match="20 bytes") as caught:
        collect_files(files, app, limit=Limit(size=19))

    assert caught.value.key == "files"
