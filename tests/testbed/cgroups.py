"""Control groups, version 1 and 2: what belongs to a testbed, so that all of it can be found and killed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.polling import wait_until


@dataclass(frozen=True)
class Hierarchy:
    """One mounted control group hierarchy."""

    path: Path
    version: int
    controllers: frozenset[str]


def hierarchies() -> list[Hierarchy]:
    """The hierarchies mounted on this machine: one of version 2, or several of version 1, or both."""
    found = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount_point, kind, options, *_ = line.split()
        path = Path(mount_point)
        if not path.is_relative_to("/sys/fs/cgroup"):
            continue
        if kind == "cgroup":
            found.append(Hierarchy(path, 1, frozenset(options.split(",")) - {"rw", "relatime", "nosuid"}))
        elif kind == "cgroup2":
            found.append(Hierarchy(path, 2, frozenset((path / "cgroup.controllers").read_text().split())))
    return found


class ControlGroup:
    """A group of the same name in every hierarchy.

    Args:
        name: Path from the root of each hierarchy, for example `pd-testbed-0/alpha`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def create(self, *, memory: int | None = None, cpus: int | None = None) -> None:
        """Make the group and its parents, and bound it.

        Args:
            memory: Bytes that its processes may hold together; default no bound.
            cpus: Number of CPUs that its processes may run on; default all.
        """
        for hierarchy in hierarchies():
            path = hierarchy.path
            for part in Path(self.name).parts:
                parent, path = path, path / part
                if hierarchy.version == 2 and hierarchy.controllers:
                    wanted = " ".join(f"+{name}" for name in sorted(hierarchy.controllers))
                    (parent / "cgroup.subtree_control").write_text(wanted)
                path.mkdir(exist_ok=True)
                if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
                    # A group of version 1 takes no process before these are set.
                    for key in ("cpuset.cpus", "cpuset.mems"):
                        (path / key).write_text((parent / key).read_text())
            if memory is not None and "memory" in hierarchy.controllers:
                key = "memory.limit_in_bytes" if hierarchy.version == 1 else "memory.max"
                (path / key).write_text(str(memory))
            if cpus is not None and "cpuset" in hierarchy.controllers:
                (path / "cpuset.cpus").write_text(",".join(map(str, sorted(os.sched_getaffinity(0))[:cpus])))

    def entrances(self) -> list[Path]:
        """The files to which a process writes its id to join the group."""
        return [path / "cgroup.procs" for path in self._paths()]

    def processes(self) -> set[int]:
        """Ids of all processes of the group and of the groups below it."""
        found: set[int] = set()
        for path in self._paths():
            for file in path.rglob("cgroup.procs"):
                with suppress(OSError):  # the group has just gone
                    found.update(int(line) for line in file.read_text().split())
        return found - {0}

    def remove(self, timeout: float = 30.0) -> None:
        """Kill every process of the group, and remove it with the groups below it."""

        def empty() -> bool:
            processes = self.processes()
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not processes

        def removed() -> bool:
            for path in self._paths():
                below = [folder for folder in path.rglob("*") if folder.is_dir()]
                with suppress(OSError):  # the kernel lets go of a dead process's group a little later
                    for folder in sorted([path, *below], reverse=True):
                        folder.rmdir()
            return not self._paths()

        wait_until(empty, timeout, f"the processes of {self.name} are dead")
        wait_until(removed, timeout, f"the control group {self.name} is removed")

    def _paths(self) -> list[Path]:
        paths = (hierarchy.path / self.name for hierarchy in hierarchies())
        return [path for path in paths if path.is_dir()]
