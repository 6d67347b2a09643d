"""What a host has, and what is wrong with it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from docker import DockerClient
from docker.errors import DockerException
from pydantic import BaseModel, ConfigDict, Field
from requests import RequestException

from prefect_dstack.backends.claims import Claim, claims_on
from prefect_dstack.backends.fleet import Fleet, FleetHost
from prefect_dstack.backends.gpus import GPU_SURVEY, GpuDevice, read_gpus
from prefect_dstack.errors import HostError, HostNotReadyError
from prefect_dstack.hosts.ssh_machine import SshMachine

__all__ = [
    "HostInventory",
    "HostProblem",
    "HostReport",
    "check_fleet",
    "check_hosts",
    "inspect",
    "read_inventory",
    "with_internal_addresses",
]

GB = 1024**3
LEAST_FREE_DISK_GB = 5.0
MOST_AT_ONCE = 32

# One round trip: each line a word and what it says.
SURVEY = (
    r"""
disk=/var/lib/docker; [ -d "$disk" ] || disk=/
echo "cpus $(nproc)"
echo "memory $(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
echo "arch $(uname -m)"
echo "disk $(df -Pk "$disk" | awk 'NR == 2 {print $2, $4}')"
echo "addresses $(hostname -I 2>/dev/null)"
"""
    + GPU_SURVEY
)


class HostProblem(BaseModel):
    """Something that is wrong with a host."""

    model_config = ConfigDict(frozen=True)

    summary: str = Field(description="What is wrong.")
    remedy: str = Field(description="What to do about it.")
    fatal: bool = Field(description="Whether no replica can run there as it is.")


class HostInventory(BaseModel):
    """What a host has."""

    model_config = ConfigDict(frozen=True)

    cpus: int = Field(description="Virtual processors.")
    memory_gb: float = Field(description="Memory in GB.")
    architecture: str = Field(description="`x86` or `arm`, else as the kernel calls it.")
    disk_gb: float = Field(description="Size of the disk that holds images and containers, in GB.")
    free_disk_gb: float = Field(description="What is free there, in GB.")
    addresses: tuple[str, ...] = Field(default=(), description="Its own IP addresses.")
    gpus: tuple[GpuDevice, ...] = Field(default=(), description="Its accelerators.")
    broken_gpus: str = Field(default="", description="What the driver says, if it does not work.")
    docker_version: str = Field(default="", description="The version of its Docker Engine.")
    gpu_runtime: bool = Field(default=False, description="Whether its engine can hand GPUs to containers.")

    @property
    def problems(self) -> tuple[HostProblem, ...]:
        """What is wrong with it."""
        found = []
        if self.free_disk_gb < LEAST_FREE_DISK_GB:
            found.append(
                HostProblem(
                    summary=f"only {self.free_disk_gb:.1f} GB of its disk are free",
                    remedy="free some space there, for example with `docker system prune`",
                    fatal=self.free_disk_gb < 0.1,
                )
            )
        if self.broken_gpus:
            found.append(
                HostProblem(
                    summary=f"nvidia-smi fails: {self.broken_gpus}",
                    remedy="install the NVIDIA driver again, or reboot it after an update of the driver",
                    fatal=False,
                )
            )
        if self.gpus and not self.gpu_runtime:
            found.append(
                HostProblem(
                    summary="its Docker Engine cannot hand GPUs to containers",
                    remedy="install nvidia-container-toolkit there, then "
                    "`sudo nvidia-ctk runtime configure --runtime=docker` and restart Docker",
                    fatal=False,
                )
            )
        return tuple(found)


class HostReport(BaseModel):
    """What a look at a host has found."""

    model_config = ConfigDict(frozen=True)

    host: str = Field(description="The host's name.")
    inventory: HostInventory | None = Field(
        default=None, description="What it has; None: it could not be asked."
    )
    claims: tuple[Claim, ...] = Field(default=(), description="What replicas have been promised of it.")
    internal_ip: str | None = Field(default=None, description="Its address on the fleet's network.")
    problems: tuple[HostProblem, ...] = Field(default=(), description="What is wrong with it.")

    @property
    def usable(self) -> bool:
        """Whether replicas can be put there."""
        return self.inventory is not None and not any(problem.fatal for problem in self.problems)

    @property
    def refusal(self) -> str:
        """Why no replica can be put there, with the remedy, in one line; empty if they can."""
        fatal = [problem for problem in self.problems if problem.fatal]
        if self.usable or not fatal:
            return ""
        summary = fatal[0].summary
        place = "" if summary.startswith(self.host) else f"{self.host}: "
        return f"{place}{summary}: {fatal[0].remedy}"


def read_inventory(survey: str) -> HostInventory:
    """Read what the survey of a host has written.

    Args:
        survey: Its lines.

    Returns:
        The inventory, without what the Docker Engine says.

    Raises:
        ValueError: If it is not what the survey writes.
    """
    said: dict[str, str] = {}
    gpus = []
    for line in survey.splitlines():
        word, _, rest = line.partition(" ")
        if word == "gpu":
            gpus.append(rest)
        else:
            said.setdefault(word, rest.strip())
    missing = {"cpus", "memory", "arch", "disk"} - said.keys()
    if missing:
        raise ValueError(f"nothing is said about {', '.join(sorted(missing))}")
    size, free = said["disk"].split()
    memory_gb = int(said["memory"]) * 1024 / GB
    names = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}
    return HostInventory(
        cpus=int(said["cpus"]),
        memory_gb=memory_gb,
        architecture=names.get(said["arch"], said["arch"]),
        disk_gb=int(size) * 1024 / GB,
        free_disk_gb=int(free) * 1024 / GB,
        addresses=tuple(said.get("addresses", "").split()),
        gpus=read_gpus(gpus, memory_gb),
        broken_gpus=said.get("broken", ""),
    )


def inspect(machine: SshMachine) -> HostInventory:
    """Inspect a host: one command, one question to its engine.

    Args:
        machine: The host.

    Returns:
        What it has.

    Raises:
        HostError: If it cannot be reached, has no engine, or is not a Linux that we understand.
    """
    outcome = machine.run(["sh", "-c", SURVEY], timeout=60, idempotent=True)
    try:
        inventory = read_inventory(outcome.stdout.decode(errors="replace"))
    except ValueError as error:
        raise HostNotReadyError(
            f"{machine.name}: it cannot be surveyed, is it a Linux with the usual tools? ({error})"
        ) from error
    info = _info(machine.docker(), machine.name)
    runtimes = info.get("Runtimes") or {}
    return inventory.model_copy(
        update={
            "docker_version": str(info.get("ServerVersion", "")),
            "gpu_runtime": "nvidia" in runtimes or bool(info.get("DiscoveredDevices")),
        }
    )


def _info(engine: DockerClient, name: str) -> dict[str, Any]:
    try:
        info: dict[str, Any] = engine.info()
    except (DockerException, RequestException) as error:
        raise HostNotReadyError(f"{name}: its Docker Engine does not answer: {error}") from error
    return info


def check_fleet(fleet: Fleet) -> list[HostReport]:
    """Inspect all hosts of a fleet at once.

    Args:
        fleet: The fleet.

    Returns:
        One report for each host, in order; one that cannot be reached has the reason among its problems.
    """
    return check_hosts(fleet.hosts)


def with_internal_addresses(fleet: Fleet, reports: Sequence[HostReport]) -> Fleet:
    """Record the addresses that were found on the fleet's network.

    Args:
        fleet: The fleet.
        reports: Of `check_fleet`.

    Returns:
        The fleet to keep: services publish their ports on these addresses, and gateways look for them there.
    """
    found = {report.host: report.internal_ip for report in reports}
    hosts = tuple(
        host.model_copy(update={"internal_ip": found.get(host.name) or host.internal_ip})
        for host in fleet.hosts
    )
    return fleet.model_copy(update={"hosts": hosts})


def check_hosts(hosts: Sequence[FleetHost]) -> list[HostReport]:
    """Inspect hosts at once; see `check_fleet`."""
    if not hosts:
        return []
    with ThreadPoolExecutor(min(len(hosts), MOST_AT_ONCE), thread_name_prefix="check-host") as pool:
        return list(pool.map(_check, hosts))


def _check(host: FleetHost) -> HostReport:
    try:
        machine = host.machine()
        inventory = inspect(machine)
        claims = claims_on(machine.docker(), host.name)
    except HostError as error:
        summary, _, remedy = str(error).rpartition(": ")
        return HostReport(host=host.name, problems=(HostProblem(summary=summary, remedy=remedy, fatal=True),))
    internal_ip, wrong = _internal_ip(host, inventory)
    return HostReport(
        host=host.name,
        inventory=inventory,
        claims=tuple(claims),
        internal_ip=internal_ip,
        problems=(*inventory.problems, *wrong),
    )


def _internal_ip(host: FleetHost, inventory: HostInventory) -> tuple[str | None, tuple[HostProblem, ...]]:
    has = ", ".join(inventory.addresses) or "none"
    if host.internal_ip is not None:
        if not inventory.addresses or host.internal_ip in inventory.addresses:
            return host.internal_ip, ()
        wrong = f"`internal_ip` {host.internal_ip} is none of its addresses ({has})"
        return None, (HostProblem(summary=wrong, remedy="correct it, or leave it out", fatal=True),)
    if host.network is None:
        return None, ()
    network = ipaddress.ip_network(host.network, strict=False)
    inside = [one for one in inventory.addresses if ipaddress.ip_address(one) in network]
    if inside:
        return inside[0], ()
    wrong = f"none of its addresses ({has}) is in the network {host.network}"
    return None, (HostProblem(summary=wrong, remedy="correct `network`, or give `internal_ip`", fatal=True),)
