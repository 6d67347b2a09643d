"""Where the archives of bundles are kept for all machines that deploy the same services."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from prefect_dstack.bundles.archives import pack, unpack
from prefect_dstack.bundles.entries import Bundle, stored_entries
from prefect_dstack.errors import NotFoundError

__all__ = ["BundleStorage", "downloaded", "unneeded", "upload"]

# A deployment records what it has uploaded within minutes; clocks of machines differ by less than the rest.
SETTLED = timedelta(days=1)

_ARCHIVE = re.compile(r"([0-9a-f]{64})\.tar.*")


class BundleStorage(Protocol):
    """A directory of files somewhere, that several machines may use at once.

    Its methods raise an `OrchestratorError` if it does not answer or refuses, and a `ConfigurationError` if
    it is described wrongly.
    """

    @property
    def name(self) -> str:
        """What its user calls it, for messages."""
        ...

    def upload(self, source: Path, file: str) -> None:
        """Keep a copy of a file, which nobody sees before it is complete.

        Args:
            source: The file on this machine.
            file: What it is called there; one of that name is replaced.
        """
        ...

    def download(self, file: str, target: Path) -> None:
        """Copy a file to this machine.

        Args:
            file: What it is called there.
            target: What it is to be called here.

        Raises:
            FileNotFoundError: If there is none.
        """
        ...

    def modified(self, file: str) -> datetime | None:
        """Return when a file was written; None if there is none, or it is not known.

        Args:
            file: What it is called there.
        """
        ...

    def files(self) -> Mapping[str, datetime]:
        """Return all files, with when they were written; none where that is not known."""
        ...

    def remove(self, file: str) -> None:
        """Remove a file, which may be gone already.

        Args:
            file: What it is called there.
        """
        ...


def upload(
    storage: BundleStorage, digest: str, directory: Path, *, recorded: bool, renew: bool = False
) -> bool:
    """Put a bundle into a storage, unless it is there.

    Args:
        storage: The storage.
        digest: The bundle's.
        directory: Its copy on this machine.
        recorded: Whether a record names it already, so that nobody removes it from there.
        renew: Whether to replace what is there, which somebody may have damaged.

    Returns:
        Whether it was uploaded.

    Raises:
        OrchestratorError: If the storage does not take it.
        OSError: If there is no room for the archive on this machine.
    """
    file = _file(digest)
    modified = storage.modified(file)
    # One that is old and that no record names may be removed by somebody before ours does.
    if not renew and modified is not None and (recorded or datetime.now(UTC) - modified < SETTLED / 2):
        return False
    with _scratch() as place:
        pack(stored_entries(directory), place / file)
        storage.upload(place / file, file)
    return True


@contextmanager
def downloaded(storage: BundleStorage, digest: str) -> Iterator[Bundle]:
    """Get a bundle from a storage.

    Args:
        storage: The storage.
        digest: The bundle's.

    Yields:
        The bundle, whose files are removed at the end.

    Raises:
        FileNotFoundError: If it is not there.
        NotFoundError: If what is there under its name is something else.
        OrchestratorError: If the storage does not give it.
        OSError: If there is no room for it on this machine.
    """
    file = _file(digest)
    with _scratch() as place:
        archive = place / file
        storage.download(file, archive)
        try:
            bundle = unpack(archive, place / "files")
        except ValueError as error:
            raise _corrupt(storage, file, str(error)) from error
        if bundle.digest != digest:
            raise _corrupt(storage, file, f"the digest of its files is {bundle.digest}")
        archive.unlink()
        yield bundle


def unneeded(files: Mapping[str, datetime], keep: Collection[str]) -> dict[str, str]:
    """Find the archives that nobody needs.

    Args:
        files: What `BundleStorage.files` returned before the records were read.
        keep: The digests that some record refers to.

    Returns:
        The digests by the names of the files. New ones are not among them: a deployment may be about to
        record them.
    """
    before = datetime.now(UTC) - SETTLED
    found = {
        file: match[1]
        for file, modified in files.items()
        if modified < before and (match := _ARCHIVE.fullmatch(file))
    }
    # Beside whole ones there are those of uploads that were cut off.
    return {file: digest for file, digest in found.items() if file != _file(digest) or digest not in keep}


def _file(digest: str) -> str:
    return f"{digest}.tar"


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prefect-dstack-") as place:
        yield Path(place)


def _corrupt(storage: BundleStorage, file: str, why: str) -> NotFoundError:
    return NotFoundError(
        f"{storage.name}: {file} is not what was put there: {why}: delete it, and apply the configuration "
        "again where its files are"
    )
