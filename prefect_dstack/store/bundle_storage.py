"""The storage of bundles that a Prefect block describes.

Prefect's file systems can read and write. What else is needed, each kind of block can do in a way of its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

from prefect.blocks.core import Block, UnknownBlockType
from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from prefect.utilities.asyncutils import run_coro_as_sync

from prefect_dstack.errors import ConfigurationError, OrchestratorError

__all__ = ["PrefectBundleStorage"]

S3_SLUG = "s3-bucket"
PROBE = "prefect-dstack-doctor"


class PrefectBundleStorage:
    """Keeps files where a block of the Prefect API says; implements `BundleStorage`.

    The block is loaded when something is asked of it first.

    Args:
        slug: The block's type and name, such as `s3-bucket/models`.
    """

    def __init__(self, slug: str) -> None:
        self.slug = slug

    @property
    def name(self) -> str:
        """The block, for messages."""
        return self.slug

    def upload(self, source: Path, file: str) -> None:
        """Keep a copy of a file; see `BundleStorage.upload`."""
        with self._told("cannot be written"):
            self._place.upload(source, file)

    def download(self, file: str, target: Path) -> None:
        """Copy a file to this machine; see `BundleStorage.download`."""
        with self._told("cannot be read"):
            self._place.download(file, target)

    def modified(self, file: str) -> datetime | None:
        """Return when a file was written; see `BundleStorage.modified`."""
        with self._told("cannot be read"):
            return self._place.modified(file)

    def files(self) -> Mapping[str, datetime]:
        """Return all files; see `BundleStorage.files`."""
        with self._told("cannot be listed"):
            return self._place.files()

    def remove(self, file: str) -> None:
        """Remove a file; see `BundleStorage.remove`."""
        with self._told("nothing can be removed"):
            self._place.remove(file)

    def check(self) -> str:
        """Write a small file, read it again, and remove it.

        Returns:
            Where files are kept, and what cannot be done there.

        Raises:
            ConfigurationError: If the block is not there, or cannot be used.
            OrchestratorError: If the storage refuses.
        """
        with tempfile.TemporaryDirectory(prefix="prefect-dstack-") as text:
            sent, received = Path(text, "sent"), Path(text, "received")
            sent.write_text(secrets.token_hex())
            self.upload(sent, PROBE)
            try:
                self.download(PROBE, received)
            except FileNotFoundError as error:
                raise OrchestratorError(f"{self.name}: what was written is not there to read") from error
            if received.read_bytes() != sent.read_bytes():
                raise OrchestratorError(f"{self.name}: what was written is not what is read")
        if self.modified(PROBE) is None:
            return "nothing is removed from it: give it a rule that removes old files"
        self.remove(PROBE)
        return self._place.where

    @functools.cached_property
    def _place(self) -> _Place:
        return _place_of(self.slug, _loaded(self.slug))

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ConfigurationError, FileNotFoundError):
            raise
        except Exception as error:
            # Blocks of any package raise what they like.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OrchestratorError(f"{self.name}: {what}: {reason}") from error


class _Place(Protocol):
    """What `BundleStorage` asks of one kind of block; it raises whatever it likes."""

    where: str

    def upload(self, source: Path, file: str) -> None: ...

    def download(self, file: str, target: Path) -> None: ...

    def modified(self, file: str) -> datetime | None: ...

    def files(self) -> Mapping[str, datetime]: ...

    def remove(self, file: str) -> None: ...


class _Directory:
    """A directory that all machines have mounted."""

    def __init__(self, block: LocalFileSystem) -> None:
        self._path = Path(block.basepath or ".").expanduser().resolve()
        self.where = f"the directory {self._path}, which all machines must share"

    def upload(self, source: Path, file: str) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        fresh = self._path / _fresh(file)
        shutil.copyfile(source, fresh)
        fresh.replace(self._path / file)

    def download(self, file: str, target: Path) -> None:
        shutil.copyfile(self._path / file, target)

    def modified(self, file: str) -> datetime | None:
        with contextlib.suppress(FileNotFoundError):
            return _written(self._path / file)
        return None

    def files(self) -> Mapping[str, datetime]:
        found = {}
        for path in self._path.iterdir() if self._path.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # removed since
                found[path.name] = _written(path)
        return found

    def remove(self, file: str) -> None:
        (self._path / file).unlink(missing_ok=True)


class _Remote:
    """Whatever fsspec reaches."""

    def __init__(self, block: RemoteFileSystem) -> None:
        self._filesystem: Any = block.filesystem
        self._base = str(self._filesystem._strip_protocol(block.basepath)).rstrip("/")  # noqa: SLF001 - theirs
        self.where = f"{self._base} by {type(self._filesystem).__name__}"

    def upload(self, source: Path, file: str) -> None:
        self._filesystem.makedirs(self._base, exist_ok=True)
        fresh = self._path(_fresh(file))
        self._filesystem.put_file(str(source), fresh)
        self._filesystem.mv(fresh, self._path(file))

    def download(self, file: str, target: Path) -> None:
        self._filesystem.get_file(self._path(file), str(target))

    def modified(self, file: str) -> datetime | None:
        self._filesystem.invalidate_cache()  # others write there, too
        return self._known(file)

    def files(self) -> Mapping[str, datetime]:
        self._filesystem.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            names = [PurePosixPath(path).name for path in self._filesystem.ls(self._base, detail=False)]
            known = {file: self._known(file) for file in names}
            return {file: modified for file, modified in known.items() if modified is not None}
        return {}

    def _known(self, file: str) -> datetime | None:
        with contextlib.suppress(FileNotFoundError, NotImplementedError):
            return _aware(self._filesystem.modified(self._path(file)))
        return None

    def remove(self, file: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path(file))

    def _path(self, file: str) -> str:
        return f"{self._base}/{file}"


class _S3:
    """A bucket, by the client of its credentials."""

    def __init__(self, block: Any) -> None:
        self._client = block.credentials.get_client("s3")
        self._bucket = block.bucket_name
        folder = block.bucket_folder.strip("/")
        self._prefix = f"{folder}/" if folder else ""
        self.where = f"s3://{self._bucket}/{self._prefix}"

    def upload(self, source: Path, file: str) -> None:
        self._client.upload_file(str(source), self._bucket, self._prefix + file)

    def download(self, file: str, target: Path) -> None:
        with _missing_is_not_found(file):
            self._client.download_file(self._bucket, self._prefix + file, str(target))

    def modified(self, file: str) -> datetime | None:
        with contextlib.suppress(FileNotFoundError), _missing_is_not_found(file):
            found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + file)
            return _aware(found["LastModified"])
        return None

    def files(self) -> Mapping[str, datetime]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
        )
        return {
            found["Key"].removeprefix(self._prefix): _aware(found["LastModified"])
            for page in pages
            for found in page.get("Contents", ())
        }

    def remove(self, file: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._prefix + file)


class _Plain:
    """A file system of any package, which can be read and written and nothing else."""

    def __init__(self, block: WritableFileSystem) -> None:
        self._block = block
        self.where = type(block).__name__

    def upload(self, source: Path, file: str) -> None:
        _called(self._block.write_path, file, source.read_bytes())

    def download(self, file: str, target: Path) -> None:
        target.write_bytes(_called(self._block.read_path, file))

    def modified(self, file: str) -> datetime | None:
        return None

    def files(self) -> Mapping[str, datetime]:
        return {}

    def remove(self, file: str) -> None:
        raise NotImplementedError("a block of this kind cannot remove files")


def _loaded(slug: str) -> Block:
    try:
        return cast("Block", Block.load(slug, _sync=True))  # type: ignore[call-arg]
    except (ValueError, UnknownBlockType) as error:
        if "Unable to find block document" in str(error):
            raise _unusable(f"there is no block {slug!r}: save it, or correct its name") from error
        raise _unusable(f"the block {slug!r} cannot be loaded: {' '.join(str(error).split())}") from error


def _place_of(slug: str, block: Block) -> _Place:
    if isinstance(block, LocalFileSystem):
        return _Directory(block)
    if isinstance(block, RemoteFileSystem):
        return _Remote(block)
    if block.get_block_type_slug() == S3_SLUG:
        return _S3(block)
    if isinstance(block, WritableFileSystem):
        return _Plain(block)
    raise _unusable(
        f"the block {slug!r} is a {type(block).__name__}, and no file system that can be written: name one, "
        "such as s3-bucket/NAME"
    )


def _unusable(problem: str) -> ConfigurationError:
    return ConfigurationError(problem, source="settings", key="PREFECT_DSTACK_BUNDLE_STORAGE")


def _called(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method that may be asynchronous, or that is if a loop runs."""
    result = method(*arguments)
    return run_coro_as_sync(result) if inspect.iscoroutine(result) else result


@contextlib.contextmanager
def _missing_is_not_found(file: str) -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
            raise FileNotFoundError(file) from error
        raise


def _fresh(file: str) -> str:
    return f"{file}.new-{secrets.token_hex(8)}"


def _written(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
