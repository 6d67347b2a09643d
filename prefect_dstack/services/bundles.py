"""The files that a revision brings along, and its own copy of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from prefect_dstack.bundles import Bundle, BundleStore, Limit, collect, collect_files
from prefect_dstack.configurations import RunConfiguration
from prefect_dstack.domain.execution import runtime_of
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.settings import settings
from prefect_dstack.store.records import readable_records

__all__ = ["bundle_of", "holding_bundle", "prune_bundles"]


def bundle_of(configuration: RunConfiguration, infrastructure: Infrastructure) -> Bundle | None:
    """Collect the files of a run.

    Args:
        configuration: A service, a task or a development environment.
        infrastructure: Where copies are kept.

    Returns:
        Of processes, its directory; of containers, its `files`. None if there are
        none, or if the configuration is no file: then the commands run in the current directory, as it is.

    Raises:
        ConfigurationError: If they are too many or too large, or cannot be read.
    """
    directory, source = configuration.directory, configuration.source_name
    limit = Limit(size=settings().bundle_size_limit, files=settings().bundle_files_limit)
    left_out = [infrastructure.home]
    file = None if source is None else directory / Path(source).name
    if file is not None and file.is_file():
        left_out.append(file)
    cache = infrastructure.bundles.cache
    if runtime_of(configuration) == "docker":
        if not configuration.files:
            return None
        return collect_files(configuration.files, directory, limit=limit, exclude=left_out, cache=cache)
    if file is None or not file.is_file():
        return None
    return collect(directory, limit=limit, exclude=left_out, cache=cache)


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


def prune_bundles(infrastructure: Infrastructure) -> None:
    """Remove the copies of files that no revision of any service needs any more.

    Args:
        infrastructure: Where they are.
    """
    records, unreadable = readable_records()
    if not unreadable:
        keep = {revision.bundle for record in records for revision in record.revisions if revision.bundle}
        infrastructure.bundles.prune(keep)
