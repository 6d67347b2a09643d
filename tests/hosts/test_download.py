"""Files come back from a container beside those that are there, which stay."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from prefect_dstack.hosts.download import unpack


def archive(**files: str) -> list[bytes]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return [stream.getvalue()]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "mine").write_text("mine")
    return directory


def test_a_directory_joins_the_one_that_is_there(project: Path) -> None:
    unpack(archive(out__model="new"), "out", project)

    assert {path.name: path.read_text() for path in project.iterdir()} == {"mine": "mine", "model": "new"}


def test_a_file_goes_into_the_directory_that_is_there(project: Path) -> None:
    unpack(archive(model="new"), "model", project)

    assert {path.name: path.read_text() for path in project.iterdir()} == {"mine": "mine", "model": "new"}


def test_a_file_takes_the_place_of_the_one_before(project: Path) -> None:
    unpack(archive(model="new"), "model", project / "mine")

    assert (project / "mine").read_text() == "new"
    assert [path.name for path in project.iterdir()] == ["mine"]


def test_nothing_lands_outside(project: Path) -> None:
    with pytest.raises(tarfile.TarError):
        unpack(archive(**{"..__outside": "new"}), "out", project)

    assert [path.name for path in project.parent.iterdir()] == ["project"]
