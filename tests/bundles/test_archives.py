"""An archive of a bundle gives the same bundle again; one that somebody else has written gives nothing."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_dstack.bundles import BundleStore, collect
from prefect_dstack.bundles.archives import pack, unpack
from prefect_dstack.bundles.entries import stored_entries
from tests.bundles.files import contents, write


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive.tar"


def fill(app: Path) -> None:
    write(app / "run.sh", "#!/bin/sh", 0o755)
    write(app / "src/deep/a.py", "a")
    write(app / "src/key", "k", 0o600)
    write(app / "private/key", "k", 0o600)
    (app / "private").chmod(0o700)
    write(app / os.fsdecode(b"caf\xe9 \n"), "x")
    write(app / ("long/" * 40) / "path", "x")
    (app / "src/link").symlink_to("./deep/../deep/a.py")
    (app / "empty").mkdir()


def test_gives_the_same_bundle(app: Path, store: BundleStore, archive: Path, tmp_path: Path) -> None:
    fill(app)
    bundle = collect(app)

    pack(stored_entries(store.put(bundle)), archive)
    found = unpack(archive, tmp_path / "files")

    assert found.digest == bundle.digest
    assert contents(tmp_path / "files") == contents(store.path(bundle.digest))
    written = [(entry.path, entry.modified_ns // 10**9) for entry in bundle.entries if entry.kind == "file"]
    assert written == [(it.path, it.modified_ns // 10**9) for it in found.entries if it.kind == "file"]


def test_is_the_same_whoever_writes_it(app: Path, store: BundleStore, tmp_path: Path) -> None:
    fill(app)
    stored = stored_entries(store.put(collect(app)))

    pack(stored, tmp_path / "first")
    pack(stored, tmp_path / "second")

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def hostile(change: Callable[[tarfile.TarInfo], object], name: str = "file") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = 0o644
    change(member)
    return member


def leading(kind: bytes, to: str) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, to

    return change


def nothing(member: tarfile.TarInfo) -> None:
    pass


HOSTILE = {
    "a path above": [hostile(nothing, "../out")],
    "above itself": [hostile(nothing, "..")],
    "a path by the way of above": [
        hostile(leading(tarfile.DIRTYPE, ""), "a"),
        hostile(nothing, "a/../../out"),
    ],
    "an absolute path": [hostile(nothing, "/tmp/out")],
    "a link that leads out": [hostile(leading(tarfile.SYMTYPE, "../../out"))],
    "an absolute link": [hostile(leading(tarfile.SYMTYPE, "/etc/passwd"))],
    "through a link": [hostile(leading(tarfile.SYMTYPE, "."), "here"), hostile(nothing, "here/file")],
    "over a link": [hostile(leading(tarfile.SYMTYPE, "target"), "file"), hostile(nothing, "file")],
    "twice": [hostile(nothing), hostile(nothing)],
    "a hard link": [hostile(nothing), hostile(leading(tarfile.LNKTYPE, "file"), "second")],
    "a device": [hostile(leading(tarfile.CHRTYPE, ""))],
    "a pipe": [hostile(leading(tarfile.FIFOTYPE, ""))],
    "no directory": [hostile(nothing, "missing/file")],
    "a time without end": [hostile(lambda member: setattr(member, "mtime", 1e30))],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses_what_would_land_elsewhere(
    members: list[tarfile.TarInfo], archive: Path, tmp_path: Path
) -> None:
    with tarfile.open(archive, "w") as opened:
        for member in members:
            opened.addfile(member, io.BytesIO())
    (tmp_path / "inner").mkdir()

    with pytest.raises(ValueError, match=r"."):
        unpack(archive, tmp_path / "inner/files")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.tar", "inner"]
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["files"]


def test_refuses_a_small_file_that_says_to_be_large(archive: Path, tmp_path: Path) -> None:
    member = tarfile.TarInfo("file")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as opened:
        opened.addfile(member, io.BytesIO())

    with pytest.raises(ValueError, match="neither a file"):
        unpack(archive, tmp_path / "files")


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08"])
def test_refuses_what_is_no_archive(content: bytes, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(content)

    with pytest.raises(ValueError, match=r"."):
        unpack(archive, tmp_path / "files")


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_part_is_no_other_bundle(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("cut")
    write(place / "app/a", "a" * 2000)
    write(place / "app/b", "b" * 2000)
    bundle = collect(place / "app")
    pack(stored_entries(BundleStore(place / "bundles").put(bundle)), place / "whole")
    whole = (place / "whole").read_bytes()
    (place / "part").write_bytes(whole[: int(len(whole) * cut)])

    try:
        found = unpack(place / "part", place / "files")
    except ValueError:
        return
    assert found.digest != bundle.digest or contents(place / "files") == contents(place / "app")
