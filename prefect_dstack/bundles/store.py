"""Copies of bundles that nobody edits, by their digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from prefect_dstack.bundles.copying import copy_file, remove_tree, write_out
from prefect_dstack.bundles.digests import file_digest
from prefect_dstack.bundles.entries import Bundle, Entry, stored_entries
from prefect_dstack.bundles.storage import BundleStorage, downloaded, upload
from prefect_dstack.errors import ConfigurationError, HostNotReadyError, NotFoundError

__all__ = ["BundleStore"]

ATTEMPTS = 3
PAUSE = 0.1
CACHE_DAYS = 30

_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = (".new-", ".gone-")
# Too many names of one file already, or a file system that has no second names.
_CANNOT_LINK = (errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class BundleStore:
    """A directory of bundles.

    Each is read-only, and complete as soon as it can be seen. Files with the same content and permissions are
    there once, whatever the number of bundles that have them. Any number of processes may use it at once.

    Args:
        directory: Where it is; made when something is put into it.
        storage: Where the bundles of other machines are found; None: nowhere.
    """

    def __init__(self, directory: Path, storage: BundleStorage | None = None) -> None:
        self.directory = directory.absolute()
        self.storage = storage

    @property
    def cache(self) -> Path:
        """Where `collect` may remember digests."""
        return self.directory / ".cache"

    def put(self, bundle: Bundle) -> Path:
        """Keep a copy of a bundle, unless it is there already.

        Args:
            bundle: What `collect` returned.

        Returns:
            The copy. Only a digest that `prune` is told to keep, or that is held, stays there.

        Raises:
            ConfigurationError: If a file has changed since it was collected.
            HostNotReadyError: If it cannot be written.
        """
        with self.holding(bundle) as place:
            return place

    @contextlib.contextmanager
    def holding(self, bundle: Bundle) -> Iterator[Path]:
        """Keep a copy of a bundle as `put` does, and let nobody remove it before the block ends.

        Whoever deploys holds it until its digest is recorded: another's `prune` does not know of it yet.

        Args:
            bundle: What `collect` returned.

        Yields:
            The copy.

        Raises:
            ConfigurationError: If a file has changed since it was collected.
            HostNotReadyError: If it cannot be written.
        """
        place = self._place(bundle.digest)
        with contextlib.ExitStack() as held:
            try:
                with self._locked(fcntl.LOCK_SH):
                    if not place.is_dir():
                        self._build(bundle, place)
                    held.enter_context(_lock(self._held / bundle.digest, fcntl.LOCK_SH))
            except OSError as error:
                raise _cannot_write(error, self.directory) from error
            yield place

    def path(self, digest: str) -> Path:
        """Return where the copy of a bundle is.

        Args:
            digest: The bundle's.

        Raises:
            NotFoundError: If there is none.
        """
        place = self._place(digest)
        if not place.is_dir():
            raise self._missing(digest, f"not in {self.directory}")
        return place

    def share(self, digest: str, *, recorded: bool, renew: bool = False) -> bool:
        """Put a bundle into the storage, where there is one and unless it is there already.

        Args:
            digest: The bundle's; it is here.
            recorded: Whether a record names it already.
            renew: Whether to replace what is there.

        Returns:
            Whether it was put there.

        Raises:
            OrchestratorError: If the storage does not take it.
            HostNotReadyError: If there is no room on this machine to pack it.
        """
        if self.storage is None:
            return False
        try:
            return upload(self.storage, digest, self.path(digest), recorded=recorded, renew=renew)
        except OSError as error:
            raise _cannot_write(error, self.directory) from error

    def fetch(self, digest: str) -> Path:
        """Return where the copy of a bundle is, after getting it from the storage if it is not here.

        Args:
            digest: The bundle's; a record names it.

        Raises:
            NotFoundError: If it is in neither, or something else is there under its name.
            OrchestratorError: If the storage does not give it.
            HostNotReadyError: If it cannot be written.
        """
        place = self._place(digest)
        if place.is_dir() or self.storage is None:
            return self.path(digest)
        try:
            self._make_directories()
            # Replicas are started at once, and one of them fetches for all.
            with _lock(self.directory / ".fetching", fcntl.LOCK_EX):
                if place.is_dir():
                    return place
                with downloaded(self.storage, digest) as bundle:
                    return self.put(bundle)
        except FileNotFoundError as error:
            raise self._missing(digest, f"neither in {self.directory} nor in {self.storage.name}") from error
        except OSError as error:
            raise _cannot_write(error, self.directory) from error

    def checkout(self, digest: str, target: Path) -> Path:
        """Create a replica's own, writable copy of a bundle.

        Args:
            digest: The bundle's.
            target: Where; its parent must exist. What is there already is left as it is: a replica that is
                started again finds what it wrote.

        Returns:
            `target`.

        Raises:
            NotFoundError: If there is no such bundle.
            HostNotReadyError: If it cannot be written.
        """
        if target.is_dir():
            return target
        self.path(digest)
        try:
            with self._locked(fcntl.LOCK_SH):
                stored = self.path(digest)
                with _becoming(target) as fresh:
                    for entry in stored_entries(stored):
                        _write(entry, fresh / entry.path)
        except OSError as error:
            raise _cannot_write(error, target) from error
        return target

    def prune(self, keep: Collection[str], among: Collection[str] | None = None) -> set[str]:
        """Remove all bundles but some, and what was left of processes that were killed.

        Args:
            keep: The digests that some record refers to. Those that somebody holds stay as well.
            among: Remove none but these; None: any.

        Returns:
            The digests of those removed.

        Raises:
            HostNotReadyError: If something cannot be removed.
        """
        if not self.directory.is_dir():
            return set()
        try:
            with self._locked(fcntl.LOCK_EX):
                stored = self._stored()
                unneeded = (stored if among is None else stored & set(among)) - set(keep)
                removed = {digest for digest in unneeded if self._remove(digest)}
                self._sweep()
                if removed == stored:
                    shutil.rmtree(self.cache, ignore_errors=True)
        except OSError as error:
            raise _cannot_write(error, self.directory) from error
        return removed

    def superfluous(self, keep: Collection[str]) -> set[str]:
        """Return the digests of the bundles that `prune` would remove.

        Args:
            keep: As for `prune`.
        """
        if not self.directory.is_dir():
            return set()
        with self._locked(fcntl.LOCK_EX):  # who adds one holds it by then
            return {digest for digest in self._stored() - set(keep) if not self._is_held(digest)}

    def _missing(self, digest: str, where: str) -> NotFoundError:
        return NotFoundError(
            f"the files of this revision ({digest[:12]}) are {where}: apply its configuration again, or use "
            "the machine that deployed it"
        )

    def _stored(self) -> set[str]:
        return {place.name for place in self.directory.iterdir() if _DIGEST.fullmatch(place.name)}

    def _is_held(self, digest: str) -> bool:
        try:
            with _lock(self._held / digest, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
        except BlockingIOError:
            return True

    def _place(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise NotFoundError(f"{digest!r} is not the digest of a bundle")
        return self.directory / digest

    @property
    def _files(self) -> Path:
        return self.directory / ".files"

    @property
    def _held(self) -> Path:
        return self.directory / ".held"

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the store: shared to add to it, exclusively to remove from it."""
        self._make_directories()
        with _lock(self.directory / ".lock", kind):
            yield

    def _make_directories(self) -> None:
        for directory in (self.directory, self._files, self._held):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever remembered digests first has made it by the way, open to all.
        self.directory.chmod(0o700)

    def _build(self, bundle: Bundle, place: Path) -> None:
        with _becoming(place) as fresh:
            for entry in bundle.entries:
                if entry.kind == "file":
                    self._link(entry, fresh / entry.path)
                else:
                    _write(entry, fresh / entry.path)
            for entry in reversed(bundle.entries):
                if entry.kind == "directory":
                    (fresh / entry.path).chmod(entry.mode & ~0o222)
            fresh.chmod(0o555)
            # After a loss of power it is there as a whole or not at all.
            write_out(fresh)

    def _link(self, entry: Entry, target: Path) -> None:
        kept = self._files / f"{entry.digest}-{entry.mode:o}"
        if not kept.exists():
            _copy_verified(entry, kept)
        try:
            os.link(kept, target)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            copy_file(str(kept), target, entry.mode & ~0o222, entry.modified_ns)

    def _remove(self, digest: str) -> bool:
        hold_file = self._held / digest
        try:
            with _lock(hold_file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                gone = Path(tempfile.mkdtemp(prefix=".gone-", dir=self.directory))
                (self.directory / digest).rename(gone)
                hold_file.unlink()
        except BlockingIOError:
            return False
        return True

    def _sweep(self) -> None:
        """Remove what nothing refers to; nobody is adding anything, so whatever is unfinished stays so."""
        for place in self.directory.iterdir():
            if place.name.startswith(_UNFINISHED):
                remove_tree(place)
        for file in self._files.iterdir():
            if file.stat().st_nlink == 1:
                file.unlink()
        if self.cache.is_dir():
            oldest = time.time() - CACHE_DAYS * 86400
            for file in self.cache.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if file.stat().st_mtime < oldest:
                        file.unlink()


@contextlib.contextmanager
def _lock(path: Path, kind: int) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, kind)
        yield


@contextlib.contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """Create a directory that gets its name only when it is complete; the second of two gets the first's."""
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        yield fresh
        fresh.rename(target)
    except OSError as error:
        remove_tree(fresh)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not target.is_dir():
            raise
    except BaseException:
        remove_tree(fresh)
        raise


def _write(entry: Entry, target: Path) -> None:
    if entry.kind == "directory":
        target.mkdir()
        target.chmod(entry.mode)
    elif entry.kind == "link":
        target.symlink_to(entry.target)
    else:
        copy_file(entry.source, target, entry.mode, entry.modified_ns)


def _copy_verified(entry: Entry, kept: Path) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        copy = kept.with_name(f".new-{secrets.token_hex(8)}")
        try:
            copy_file(entry.source, copy, entry.mode & ~0o222, entry.modified_ns)
            if file_digest(str(copy))[0] == entry.digest:
                copy.replace(kept)
                return
        except FileNotFoundError:
            pass  # it has vanished, and may come back: some editors write a new file in the place of the old
        finally:
            copy.unlink(missing_ok=True)
    raise ConfigurationError(
        f"{entry.source}: has changed since it was read: apply again when nothing writes to it; if the "
        "application does, name it in .dstackignore"
    )


def _cannot_write(error: OSError, place: Path) -> HostNotReadyError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "the disk is full, free some space" if full else "check that you may write there"
    return HostNotReadyError(
        f"{place}: cannot keep the files of a revision: {error.filename or place}: {error.strerror}: {remedy}"
    )
