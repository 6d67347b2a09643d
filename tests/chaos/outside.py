"""What there is in a home on this machine, seen from outside: processes, ports and files."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.home import Home

Role = Literal["supervisor", "haproxy", "haproxy worker", "controller", "replica", "stranger"]

GATEWAY = "gateways/local/haproxy"


@dataclass(frozen=True)
class Found:
    """A process: what it is, and of what: a directory below that of the state, as `replicas/hello-1-0`."""

    role: Role
    of: str
    process: psutil.Process

    def __str__(self) -> str:
        return f"{self.role} of {self.of}"


def processes(home: Home) -> list[Found]:
    """Find all that runs in a home."""
    found = []
    for process in home.processes():
        with contextlib.suppress(psutil.Error, OSError):
            found.append(_found(process, home.state))
    return found


def _found(process: psutil.Process, state: Path) -> Found:
    command, environment = process.cmdline(), process.environ()
    if command and Path(command[0]).name == "haproxy" and "-c" not in command:
        parent = process.parent()
        worker = parent is not None and parent.name() == "haproxy"
        return Found("haproxy worker" if worker else "haproxy", GATEWAY, process)
    if any(argument.endswith("supervise.py") for argument in command):
        return Found("supervisor", _below(command[-1], state), process)
    if "prefect_dstack.resident.main" in command:
        return Found("controller", "controller", process)
    if place := environment.get("PREFECT_DSTACK_REPLICA"):
        return Found("replica", _below(place, state), process)
    return Found("stranger", " ".join(command), process)


def _below(path: str, state: Path) -> str:
    return str(Path(path).relative_to(state)) if Path(path).is_relative_to(state) else path


def of_service(found: list[Found], service: str, role: Role) -> list[Found]:
    """Pick the processes of a service's replicas, the oldest first."""
    name = re.compile(rf"replicas/{service}-\d+-\d+")
    mine = [it for it in found if it.role == role and name.fullmatch(it.of)]
    return sorted(mine, key=lambda it: it.process.pid)


def kill(victim: Found) -> str:
    """Kill a process, and return what it was."""
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.process.kill()
    return f"killed {victim}, process {victim.process.pid}"


def unexpected(home: Home, expected: Counter[str], *, controller: bool) -> Iterator[str]:
    """Compare the processes of a home with those that are expected there."""
    if controller:
        expected = expected + Counter(["supervisor of controller", "controller of controller"])
    found = Counter(map(str, processes(home)))
    yield from (f"{number} too many: {it}" for it, number in (found - expected).items())
    yield from (f"{number} missing: {it}" for it, number in (expected - found).items())


def listening_ports(home: Home) -> set[int]:
    """Return the ports on which anything of a home listens, as `ss` has it."""
    pids = {found.process.pid for found in processes(home)}
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        int(line.split()[3].rpartition(":")[2])
        for line in lines
        if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
    }


def replica_ports(home: Home) -> dict[str, int]:
    """Return the port that each replica was given."""
    files = home.state.glob("replicas/*/replica.json")
    return {file.parent.name: json.loads(file.read_text())["port"] for file in files}


def gateway_state(home: Home) -> dict[str, Any] | None:
    """Return what the gateway is to route; None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((home.state / "gateways" / "local" / "state.json").read_text())
    return None


def bundles(home: Home) -> set[str]:
    """Return the copies of files that are kept, by their digests."""
    return {place.name for place in home.state.glob("bundles/*/") if not place.name.startswith(".")}


def unfinished_files(home: Home) -> Iterator[str]:
    """Find what somebody has begun to write and never ended."""
    # Not `*.new`, which whoever writes the same file next replaces.
    signs = re.compile(r"\.new-.*|\.gone-.*|unfinished|\..*\.\w{8}")
    for path in home.state.rglob("*"):
        if signs.fullmatch(path.name):
            yield str(path.relative_to(home.state))
