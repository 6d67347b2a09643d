"""The files that a revision brings along, and its own copy of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from prefect.settings import get_current_settings

from prefect_dstack.bundles import (
    Bundle,
    BundleStore,
    Entry,
    Limit,
    arrange,
    check_out,
    collect,
    collect_files,
)
from prefect_dstack.bundles.storage import unneeded
from prefect_dstack.configurations import RunConfiguration, ServiceConfiguration, resolve_repository
from prefect_dstack.controller.convergence import Log
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.domain.groups import group_configurations
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.settings import settings
from prefect_dstack.store.records import readable_records

__all__ = ["bundle_of", "holding_bundle", "prune_bundle_storage", "prune_bundles", "share_bundle"]


def bundle_of(configuration: RunConfiguration, infrastructure: Infrastructure) -> Bundle | None:
    """Collect the files of a run.

    Args:
        configuration: A service, a task or a development environment.
        infrastructure: Where copies are kept, and the secrets for its repository are looked up.

    Returns:
        Of containers, its `files` by their numbers, and its repository by the number after those. Of
        processes, its directory or its repository, with its `files` in it, as the commands find them. None if
        there are none, or if the configuration is no file: then processes run in the current directory, as it
        is.

    Raises:
        ConfigurationError: If they are too many or too large, or cannot be read or fetched.
    """
    directory = configuration.directory
    limit = Limit(size=settings().bundle_size_limit, files=settings().bundle_files_limit)
    file = _file_of(configuration)
    left_out = [infrastructure.home, get_current_settings().home, *([] if file is None else [file])]
    cache = infrastructure.bundles.cache
    files = None
    if configuration.files:
        files = collect_files(configuration.files, directory, limit=limit, exclude=left_out, cache=cache)
    repository = None
    if configuration.repos:
        root, remote = _repository(configuration, infrastructure)
        repository = collect(root, limit=limit, exclude=left_out, cache=cache, whole=remote, key="repos.0")
    if runtime_of(configuration) == "docker":
        return _for_containers(files, repository, len(configuration.files))
    own = None
    if repository is None and file is not None:
        own = collect(directory, limit=limit, exclude=left_out, cache=cache)
    return _for_processes(configuration, files, repository, own)


def _file_of(configuration: RunConfiguration) -> Path | None:
    if configuration.source_name is None:
        return None
    file = configuration.directory / Path(configuration.source_name).name
    return file if file.is_file() else None


def _repository(configuration: RunConfiguration, infrastructure: Infrastructure) -> tuple[Path, bool]:
    """Return where the files of the repository are on this machine, and whether they came from another."""
    remote = resolve_repository(configuration, infrastructure.sources.secret, os.environ)
    if remote is not None:
        return check_out(remote, infrastructure.home / "repositories"), True
    local = Path(configuration.repos[0].local_path or ".").expanduser()
    return configuration.directory / local, False


def _for_containers(files: Bundle | None, repository: Bundle | None, number: int) -> Bundle | None:
    if repository is None:
        return files
    for entry in repository.entries:
        if entry.kind == "link" and Path(entry.target).is_absolute():
            raise ConfigurationError(
                f"{entry.source}: the link leads out of the repository, to {entry.target}: name it in "
                ".dstackignore, or copy what it leads to",
                key="repos.0",
            )
    return arrange([(".", files.entries if files else ()), (str(number), repository.entries)])


def _for_processes(
    configuration: RunConfiguration, files: Bundle | None, repository: Bundle | None, own: Bundle | None
) -> Bundle | None:
    working_dir = configuration.working_dir or "."
    parts: list[tuple[str, Iterable[Entry]]] = [] if own is None else [(".", own.entries)]
    if repository is not None:
        parts.append((f"{working_dir}/{configuration.repos[0].path}", repository.entries))
    if files is not None:
        for number, mapping in enumerate(configuration.files):
            parts.append((f"{working_dir}/{mapping.path}", _numbered(files, number)))
    if not parts:
        return None
    return arrange(parts, own.ignored if own else ())


def _numbered(files: Bundle, number: int) -> Iterator[Entry]:
    """Yield what one of `files` names, by its path below that; a file alone is `.`."""
    for entry in files.entries:
        first, _, rest = entry.path.partition("/")
        if first == str(number) and (rest or entry.kind != "directory"):
            yield dataclasses.replace(entry, path=rest or ".")


@contextlib.contextmanager
def holding_bundle(bundle: Bundle | None, store: BundleStore) -> Iterator[None]:
    """Keep a copy of files while a deployment goes on that no record names yet.

    Args:
        bundle: The files; None: there are none.
        store: Where the copy is kept.
    """
    if bundle is None:
        yield
        return
    with store.holding(bundle):
        yield


def prune_bundles(
    infrastructure: Infrastructure, *, among: Collection[str] | None = None, dry_run: bool = False
) -> set[str]:
    """Remove the copies of files that no revision of any service needs any more.

    Args:
        infrastructure: Where they are.
        among: Remove none but these, by their digests: others may belong to services that only another
            Prefect API knows; None: any.
        dry_run: Only find them.

    Returns:
        Their digests.
    """
    keep = _recorded_bundles()
    if keep is None:
        return set()
    bundles = infrastructure.bundles
    return bundles.superfluous(keep) if dry_run else bundles.prune(keep, among)


def share_bundle(
    configuration: ServiceConfiguration,
    bundle: Bundle | None,
    infrastructure: Infrastructure,
    log: Log,
    *,
    renew: bool = False,
) -> None:
    """Put the files of a service where other machines find them, if the settings name a storage.

    Those of processes are not: no other machine can start them.

    Args:
        configuration: The service.
        bundle: Its files, held; None: there are none.
        infrastructure: Where they are kept.
        log: Told what is put there.
        renew: Whether to replace what is there.

    Raises:
        ConfigurationError: If the block of the storage is not there, or cannot be used.
        OrchestratorError: If the storage does not take them.
    """
    storage = infrastructure.bundle_storage
    if storage is None or bundle is None:
        return
    if all(runtime_of(group) != "docker" for group in group_configurations(configuration)):
        return
    recorded = bundle.digest in (_recorded_bundles() or ())
    if infrastructure.bundles.share(bundle.digest, recorded=recorded, renew=renew):
        log.info("%s: its files are kept in %s", configuration.name, storage.name)


def prune_bundle_storage(infrastructure: Infrastructure, *, dry_run: bool) -> set[str]:
    """Remove the files that no revision of any service needs any more from the storage for all machines.

    Args:
        infrastructure: Where it is.
        dry_run: Only find them.

    Returns:
        Their digests.

    Raises:
        ConfigurationError: If the block of the storage is not there, or cannot be used.
        OrchestratorError: If the storage does not answer.
    """
    storage = infrastructure.bundle_storage
    if storage is None:
        return set()
    files = storage.files()
    keep = _recorded_bundles()
    if keep is None:
        return set()
    found = unneeded(files, keep)
    for file in found if not dry_run else ():
        modified = storage.modified(file)  # whoever deploys may have renewed it since
        if modified is not None and unneeded({file: modified}, keep):
            storage.remove(file)
    return set(found.values())


def _recorded_bundles() -> set[str] | None:
    """Return the digests that records refer to; None if there are records that cannot be read."""
    records, unreadable = readable_records()
    if unreadable:
        return None
    return {revision.bundle for record in records for revision in record.revisions if revision.bundle}
