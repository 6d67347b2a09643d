"""Services on hosts, deployed from two homes: a storage gives each the files that the other has deployed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.filesystems import LocalFileSystem

from prefect_dstack import Endpoint, create_gateway, delete_gateway, deploy_service
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.flows.fleets import apply_fleet, delete_fleet
from prefect_dstack.store.records import find_record, load_record
from tests.flows.conftest import get
from tests.flows.lab import FLEET, GATEWAY, Lab
from tests.flows.test_two_homes import Machine, machines
from tests.home import Home
from tests.prefect_server import PrefectServer

__all__ = ["machines"]

VARIABLE = "PREFECT_DSTACK_BUNDLE_STORAGE"


@pytest.fixture
def edge(lab: Lab) -> Iterator[str]:
    """The address of a gateway before a fleet of hosts."""
    apply_fleet(lab.fleet())
    create_gateway(lab.gateway())
    yield lab.edge.address
    delete_gateway(GATEWAY)
    delete_fleet(FLEET)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The directory of the storage."""
    return tmp_path / "shared"


@pytest.fixture
def storage(shared: Path, name: str, prefect_server: PrefectServer) -> str:
    """A block that names it."""
    LocalFileSystem(basepath=str(shared)).save(name, _sync=True)  # type: ignore[call-arg]
    return f"local-file-system/{name}"


@pytest.fixture
def file(tmp_path: Path, lab: Lab, name: str) -> Callable[..., Path]:
    """Writes the file of a service on hosts that answers with a word of its files."""

    def file(word: str, **keys: object) -> Path:
        place = tmp_path / word
        (place / "site").mkdir(parents=True, exist_ok=True)
        (place / "site" / "word").write_text(word)
        service = lab.service(
            name,
            replicas=1,
            fleets=[FLEET],
            gateway=GATEWAY,
            files=["site:/srv/site"],
            commands=["exec python3 -m http.server 8000 --directory /srv/site"],
            **{"probes": [{"type": "http", "url": "/word", "interval": "1s"}], **keys},
        )
        path = place / "service.dstack.yml"
        path.write_text(yaml.safe_dump(service))
        return path

    return file


def words(lab: Lab, name: str) -> dict[str, str]:
    """What the files of each replica say."""
    found = {}
    for host in lab.hosts:
        for container in host.check(["docker", "ps", "--format", "{{.Names}}"]).split():
            replica = container.removeprefix("prefect-dstack-")
            if replica.startswith(name):
                found[replica] = host.check(["docker", "exec", container, "cat", "/srv/site/word"])
    return found


@pytest.mark.testbed
@pytest.mark.timeout(900)
def test_another_home_scales_and_rolls_back(
    machines: tuple[Machine, Machine],
    edge: str,
    lab: Lab,
    storage: str,
    shared: Path,
    file: Callable[..., Path],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = machines
    a.ok("apply", "-f", file("one"), "-y")
    shutil.rmtree(tmp_path / "one")
    refused = b("scale", name, "2")
    assert refused.code != 0
    assert f"are not in {b.home.state / 'bundles'}: apply its configuration again" in refused.err

    monkeypatch.setenv(VARIABLE, storage)
    a.ok("apply", "-f", file("one"), "-y")
    a.ok("apply", "-f", file("two"), "-y")
    digests = [load_record(name).revision(number).bundle for number in (1, 2)]
    assert {path.name for path in shared.iterdir()} == {f"{digest}.tar" for digest in digests}
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")

    archive = shared / f"{digests[1]}.tar"
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b"two", b"own"))
    tampered = b("scale", name, "3")
    assert tampered.code != 0
    assert f"{archive.name} is not what was put there: the digest of its files is" in tampered.err
    assert words(lab, name) == {f"{name}-2-0": "two"}

    archive.write_bytes(whole)
    b.ok("scale", name, "3")
    assert words(lab, name) == {f"{name}-2-{number}": "two" for number in range(3)}
    b.ok("rollback", name, "1", "-y")
    assert words(lab, name) == {f"{name}-1-{number}": "one" for number in range(3)}
    assert httpx.get(f"http://{edge}/word").text == "one"

    old = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    for path in shared.iterdir():
        os.utime(path, (old, old))
    assert f"from {storage}" not in a.ok("reconcile", "--dry-run").err
    a.ok("stop", name, "-y")
    b.ok("delete", name, "-y")
    assert (
        f"remove files that no revision needs from {storage}: {digests[0][:12]}"
        in b.ok("reconcile", "--dry-run").err
    )
    assert len(list(shared.iterdir())) == 2
    b.ok("reconcile")
    assert list(shared.iterdir()) == []


@pytest.mark.integration
def test_one_that_does_not_work_is_told_before_anything_is_created(
    home: Home, prefect_server: PrefectServer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"s3-bucket/{name}")
    file = tmp_path / "service.dstack.yml"
    keys = {"type": "service", "name": name, "image": "app", "port": 80, "files": [f"{file.name}:/srv/file"]}
    file.write_text(yaml.safe_dump(keys))

    with pytest.raises(ConfigurationError, match=f"{VARIABLE}: there is no block 's3-bucket/{name}'"):
        deploy_service(file)

    assert find_record(name) is None


@pytest.mark.integration
def test_services_of_this_machine_do_without(
    deploy: Callable[..., Endpoint], home: Home, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"s3-bucket/{name}")

    assert get(deploy().url)["greeting"]
