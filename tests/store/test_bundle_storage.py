"""Blocks of the Prefect API as storages of bundles: directories, buckets, what fsspec reaches, and others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.filesystems import LocalFileSystem, RemoteFileSystem, WritableFileSystem
from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket

from prefect_dstack.bundles import BundleStore, collect
from prefect_dstack.diagnostics import diagnose
from prefect_dstack.errors import ConfigurationError, OrchestratorError, PrefectDstackError
from prefect_dstack.store.bundle_storage import PrefectBundleStorage
from prefect_dstack.store.sources import resolve_infrastructure
from tests.bundles.files import contents, write
from tests.home import Home
from tests.prefect_server import PrefectServer
from tests.testbed.ec2.account import Account
from tests.testbed.ec2.server import KEY_ID

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

VARIABLE = "PREFECT_DSTACK_BUNDLE_STORAGE"


class Plain(WritableFileSystem):
    """A file system of another package: asynchronous, and with nothing but what Prefect asks for."""

    _block_type_slug = "plain-file-system"
    directory: str

    async def read_path(self, path: str) -> bytes:
        return await asyncio.to_thread(Path(self.directory, path).read_bytes)

    async def write_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(Path(self.directory, path).write_bytes, content)


def save(block: Any, name: str) -> str:
    """Save a block, and return its slug."""
    block.save(name, overwrite=True, _sync=True)
    return f"{block.get_block_type_slug()}/{name}"


def bucket(account: Account, folder: str = "", key_id: str = KEY_ID, name: str = "models") -> S3Bucket:
    return S3Bucket(
        bucket_name=name,
        bucket_folder=folder,
        credentials=AwsCredentials(
            aws_access_key_id=key_id,
            aws_secret_access_key="secret",
            region_name="us-east-1",
            aws_client_parameters=AwsClientParameters(endpoint_url=account.url),
        ),
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "bundles"


@pytest.fixture
def local(directory: Path, name: str) -> str:
    return save(LocalFileSystem(basepath=str(directory)), name)


@pytest.fixture
def s3(aws: Account, name: str) -> str:
    client = aws.client("s3")
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="of-another", Body=b"")
    client.put_object(Bucket="models", Key="services/v1/of-another", Body=b"")
    return save(bucket(aws, "services"), name)


@pytest.fixture
def remote(name: str) -> str:
    return save(RemoteFileSystem(basepath=f"memory://{name}/bundles/"), name)


@pytest.fixture(params=["local", "s3", "remote"])
def storage(request: pytest.FixtureRequest) -> PrefectBundleStorage:
    return PrefectBundleStorage(request.getfixturevalue(request.param))


class TestEveryKind:
    def test_gives_back_what_it_was_given(self, storage: PrefectBundleStorage, tmp_path: Path) -> None:
        source = write(tmp_path / "source", os.urandom(100_000))
        assert storage.files() == {}
        assert storage.modified("file") is None

        storage.upload(source, "file")
        storage.download("file", tmp_path / "target")

        assert (tmp_path / "target").read_bytes() == source.read_bytes()
        modified = storage.modified("file")
        assert modified is not None
        assert abs(datetime.now(UTC) - modified) < timedelta(minutes=1)
        assert storage.files().keys() == {"file"}

    def test_keeps_the_last_of_two(self, storage: PrefectBundleStorage, tmp_path: Path) -> None:
        for content in ("first", "second"):
            storage.upload(write(tmp_path / content, content), "file")

        storage.download("file", tmp_path / "target")

        assert (tmp_path / "target").read_text() == "second"
        assert storage.files().keys() == {"file"}

    def test_removes(self, storage: PrefectBundleStorage, tmp_path: Path) -> None:
        storage.upload(write(tmp_path / "source"), "file")

        storage.remove("file")
        storage.remove("file")

        assert storage.files() == {}
        with pytest.raises(FileNotFoundError):
            storage.download("file", tmp_path / "target")

    def test_is_shared_by_two_stores(self, storage: PrefectBundleStorage, tmp_path: Path) -> None:
        app = write(tmp_path / "app/src/a.py", "a").parents[1]
        first, second = (BundleStore(tmp_path / home, storage) for home in ("first", "second"))
        digest = collect(app).digest
        expected = contents(first.put(collect(app)))

        assert first.share(digest, recorded=False)

        assert contents(second.fetch(digest)) == expected
        assert not second.share(digest, recorded=False)

    def test_passes_its_check_and_keeps_nothing_of_it(self, storage: PrefectBundleStorage) -> None:
        assert storage.check()
        assert storage.files() == {}


def test_any_other_file_system_can_be_written_and_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").mkdir()
    storage = PrefectBundleStorage(save(Plain(directory=str(tmp_path / "plain")), name))

    storage.upload(write(tmp_path / "source", "content"), "file")
    storage.download("file", tmp_path / "target")

    assert (tmp_path / "target").read_text() == "content"
    assert storage.files() == {}
    assert storage.modified("file") is None
    assert "rule that removes old files" in storage.check()


@pytest.fixture
def unusable(tmp_path: Path, aws: Account, name: str) -> Callable[[str], str]:
    """Makes a block with which something is wrong."""

    def make(what: str) -> str:
        if what == "missing":
            return f"s3-bucket/{name}"
        if what == "unknown type":
            return f"no-such-type/{name}"
        if what == "no file system":
            return save(Secret(value="hunter2"), name)
        if what == "read-only":
            write(tmp_path / "file")
            return save(LocalFileSystem(basepath=str(tmp_path / "file")), name)
        if what == "no bucket":
            return save(bucket(aws, name="missing"), name)
        if what == "no access":
            return save(bucket(aws, key_id="AKIASTRANGER00000000"), name)
        return save(RemoteFileSystem(basepath="nowhere://x"), name)

    return make


UNUSABLE: list[tuple[str, type[PrefectDstackError], str]] = [
    ("missing", ConfigurationError, f"settings: {VARIABLE}: there is no block"),
    ("unknown type", ConfigurationError, f"settings: {VARIABLE}: there is no block"),
    ("no file system", ConfigurationError, "is a Secret, and no file system that can be written"),
    ("read-only", OrchestratorError, "cannot be written: .*File exists"),
    ("no bucket", OrchestratorError, "cannot be written: .*NoSuchBucket"),
    ("no access", OrchestratorError, "cannot be written: .*"),
    ("no protocol", OrchestratorError, "cannot be written: .*nowhere"),
]


@pytest.mark.parametrize(("what", "kind", "message"), UNUSABLE, ids=[case[0] for case in UNUSABLE])
def test_what_is_wrong_is_said(
    what: str,
    kind: type[PrefectDstackError],
    message: str,
    unusable: Callable[[str], str],
    tmp_path: Path,
) -> None:
    slug = unusable(what)

    with pytest.raises(kind, match=message) as caught:
        PrefectBundleStorage(slug).upload(write(tmp_path / "source"), "file")

    assert slug in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["missing", "no bucket"])
def test_the_doctor_says_it_too(
    what: str, unusable: Callable[[str], str], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    slug = unusable(what)
    monkeypatch.setenv(VARIABLE, slug)

    (found,) = (it for it in diagnose() if it.summary == "the storage for the files of revisions")

    assert (found.level, found.detail) == ("problem", f"{slug} cannot be used")
    assert slug in found.resolution


def test_the_setting_names_it(
    local: str, directory: Path, home: Home, monkeypatch: pytest.MonkeyPatch, prefect_server: PrefectServer
) -> None:
    assert resolve_infrastructure().bundle_storage is None
    assert not [it for it in diagnose() if "storage" in it.summary]
    monkeypatch.setenv(VARIABLE, local)

    storage = resolve_infrastructure().bundles.storage

    assert storage is not None
    assert storage.name == local
    (found,) = (it for it in diagnose() if "storage" in it.summary)
    assert found.level == "ok"
    assert str(directory) in found.detail


@pytest.mark.parametrize("value", ["models", "s3-bucket/", "/models", "s3-bucket/a/b", "s3-bucket/a b"])
def test_the_setting_is_a_type_and_a_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)

    with pytest.raises(ConfigurationError, match=VARIABLE):
        resolve_infrastructure()


def test_nothing_is_asked_before_it_is_needed(name: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"local-file-system/{name}")

    assert resolve_infrastructure().bundles.superfluous(set()) == set()
