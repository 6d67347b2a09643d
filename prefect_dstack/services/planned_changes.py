"""What a deployment would change, found out before anything is created."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from prefect_dstack.bundles import Bundle, BundleStore
from prefect_dstack.bundles.digests import file_digest
from prefect_dstack.bundles.entries import Entry, stored_entries
from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.record import DesiredReplicas, Revision
from prefect_dstack.domain.revision import difference
from prefect_dstack.errors import NotFoundError
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.location import is_elsewhere, refuse_elsewhere
from prefect_dstack.services.preparation import desired_replicas, next_revision, prepare, with_files
from prefect_dstack.store.records import find_record, new_record

__all__ = ["PlannedChanges", "planned_changes"]

Effect = Literal["first", "replicas", "settings", "scale", "nothing"]


@dataclass(frozen=True)
class PlannedChanges:
    """What a deployment would change.

    Attributes:
        effect: `first`: nothing serves yet; `replicas`: new ones take the place of the old; `settings`: the
            replicas stay; `scale`: only their number changes; `nothing`.
        active: The revision that serves; None: none does.
        desired: How many replicas there will be.
        before: How many there are to be now; None: none.
        difference: A unified diff of the configuration, line by line.
        files: The files that differ, each with `+`, `-` or `~` before its path.
    """

    effect: Effect
    active: int | None
    desired: DesiredReplicas
    before: DesiredReplicas | None
    difference: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def planned_changes(
    configuration: ServiceConfiguration, infrastructure: Infrastructure, *, force: bool, move: bool
) -> PlannedChanges:
    """Compare a configuration, the values of its secrets and its files with what serves.

    Args:
        configuration: The service; it has a name.
        infrastructure: Where its secrets are looked up, and copies of files are kept.
        force: Whether replicas are replaced even if nothing has changed.
        move: Whether a service of another machine is moved to this one.

    Raises:
        ConfigurationError: If a secret or a file that it needs is not there.
        ConflictError: If it runs on another machine, and is not to be moved.
    """
    name = configuration.name or ""
    record = find_record(name) or new_record(name)
    if not move:
        refuse_elsewhere(record, infrastructure.here, "apply", movable=True)
    prepared = with_files(prepare(configuration, infrastructure.sources), infrastructure)
    desired = desired_replicas(record, configuration)
    active = None if is_elsewhere(record, infrastructure.here) else record.active_revision
    if active is None:
        return PlannedChanges("first", None, desired, record.desired)
    revision = next_revision(record, prepared, "")
    effect: Effect = "nothing"
    if force or active.workload != revision.workload:
        effect = "replicas"
    elif active.settings != revision.settings:
        effect = "settings"
    elif desired.numbers(prepared.groups) != record.wanted_numbers:
        effect = "scale"
    return PlannedChanges(
        effect,
        active.number,
        desired,
        record.desired,
        tuple(difference(name, active, revision).splitlines()[2:]),
        tuple(_changed_files(active, prepared.files, infrastructure.bundles)),
    )


def _changed_files(active: Revision, files: Bundle | None, store: BundleStore) -> Iterator[str]:
    if files is None or not active.bundle or files.digest == active.bundle:
        return
    try:
        old = {entry.path: entry for entry in stored_entries(store.path(active.bundle))}
    except (NotFoundError, OSError):  # another machine has deployed it
        return
    new = {entry.path: entry for entry in files.entries}
    for path in sorted(old.keys() | new.keys()):
        if path not in old:
            yield f"+{path}"
        elif path not in new:
            yield f"-{path}"
        elif _differs(old[path], new[path]):
            yield f"~{path}"


def _differs(old: Entry, new: Entry) -> bool:
    if (old.kind, old.mode, old.target) != (new.kind, new.mode, new.target):
        return True
    if old.kind != "file" or old.size != new.size:
        return old.kind == "file"
    return file_digest(old.source)[0] != new.digest
