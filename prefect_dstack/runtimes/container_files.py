"""What is put into a container before it starts: the files of its revision, and its secrets."""

from __future__ import annotations

import contextlib
import io
import shlex
import tarfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from docker import errors

from prefect_dstack.bundles import BundleStore, Entry, collect_files, stored_entries
from prefect_dstack.configurations import Environment, FileMapping
from prefect_dstack.domain.workload import WorkloadSpec
from prefect_dstack.errors import ConfigurationError, NotFoundError
from prefect_dstack.hosts.upload import container_path, pack_files
from prefect_dstack.runtimes.base import Launch

if TYPE_CHECKING:
    from docker.models.containers import Container

__all__ = ["ENVIRONMENT_FILE", "put_files", "put_secrets"]

ENVIRONMENT_FILE = "/.prefect-dstack-environment"


def put_files(container: Container, launch: Launch, bundles: BundleStore | None) -> None:
    """Put the files of a replica into its container.

    Args:
        container: The container; it has not started.
        launch: The replica.
        bundles: The copies of the files that revisions bring along; None: they are taken from where they are.

    Raises:
        ConfigurationError: If its repository would overwrite something of the image.
        NotFoundError: If the copy is not on this machine, and not in a storage.
        OrchestratorError: If the storage does not give it.
    """
    spec = launch.spec
    files = list(spec.files)
    if spec.repository is not None:
        files.append(FileMapping(local_path=".", path=spec.repository.path))
    if not files:
        return
    entries = _entries(spec, bundles)
    directory = container.attrs["Config"].get("WorkingDir") or "/"
    home = _home(container) if any(file.path.startswith("~") for file in files) else None
    if spec.repository is not None:
        target = f"/{container_path(spec.repository.path, directory, 'repos.0.path', home)}"
        if _has_something(container, target):
            if spec.repository.if_exists == "error":
                raise ConfigurationError(
                    f"{target} is not empty in {spec.image}: give the repository another path, or set "
                    "'if_exists: skip'",
                    source=spec.source,
                    line=spec.lines.get("repos.0.path"),
                    key="repos.0.path",
                )
            entries = [it for it in entries if it.path.partition("/")[0] != str(len(spec.files))]
    with pack_files(files, entries, directory, home=home) as archive:
        container.put_archive("/", archive)


def _has_something(container: Container, path: str) -> bool:
    """Return whether there is anything at a path of a container but an empty directory."""
    try:
        stream, _ = container.get_archive(path)
    except errors.NotFound:
        return False
    read = io.BytesIO()
    for part in cast("Any", stream):
        read.write(part)
        # The directory itself comes first; so much is enough to see whether something comes after it.
        if read.tell() > 10 * tarfile.BLOCKSIZE:
            return True
    read.seek(0)
    with tarfile.open(fileobj=read) as archive:
        return len(archive.getmembers()) > 1 or not archive.getmembers()[0].isdir()


def _home(container: Container) -> str | None:
    """Return the home directory of the container's user, or None where its image does not say."""
    config = container.attrs["Config"]
    for variable in config.get("Env") or ():
        if variable.startswith("HOME="):
            return str(variable.removeprefix("HOME="))
    user = (config.get("User") or "root").partition(":")[0]
    try:
        stream: Any = container.get_archive("/etc/passwd")[0]
    except errors.NotFound:
        return None
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        member = archive.extractfile("passwd")
        lines = [] if member is None else member.read().decode(errors="replace").splitlines()
    accounts = [line.split(":") for line in lines]
    return next((one[5] for one in accounts if len(one) > 5 and user in (one[0], one[2])), None)


def _entries(spec: WorkloadSpec, bundles: BundleStore | None) -> Sequence[Entry]:
    """Return the files of a revision, from its own copy, or from where they are if they are the same."""
    if bundles is None or not spec.bundle:
        return collect_files(spec.files, spec.directory).entries
    try:
        return stored_entries(bundles.fetch(spec.bundle))
    except NotFoundError:
        # The copy is on the machine that deployed it first; this one may have the same files.
        with contextlib.suppress(ConfigurationError):
            here = collect_files(spec.files, spec.directory)
            if here.digest == spec.bundle:
                return here.entries
        raise


def put_secrets(container: Container, environment: Environment) -> None:
    """Put the secret variables of a replica into a file of its container, which its command reads first.

    Args:
        container: The container; it has not started.
        environment: The variables; nothing is written if none is secret.
    """
    if environment.secret:
        container.put_archive("/", _environment_archive(environment))


def _environment_archive(environment: Environment) -> bytes:
    text = "".join(
        f"export {name}={shlex.quote(value.get_secret_value())}\n"
        for name, value in environment.secret.items()
    ).encode()
    member = tarfile.TarInfo(ENVIRONMENT_FILE.lstrip("/"))
    member.size, member.mode = len(text), 0o444
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member, io.BytesIO(text))
    return buffer.getvalue()
