"""Real hosts for gateways and replicas."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import httpx

from prefect_dstack.hosts.access import SshAccess
from prefect_dstack.hosts.ssh_machine import SshMachine
from tests.testbed.host import Host


def machine(
    host: Host, user: str = "root", publish_address: str = "127.0.0.1", jump: SshAccess | None = None
) -> SshMachine:
    """Reach a host of the testbed."""
    access = SshAccess(
        hostname=host.address,
        user=user,
        identity_file=host.identity_file,
        host_key=host.fingerprint,
        proxy_jump=jump,
    )
    return SshMachine(access, name=host.name, publish_address=publish_address)


def run_app(host: Host, address: str, port: int) -> str:
    """Start the application in a container that a reboot brings back; return the container's id."""
    publish = f"{address}:{port}:8000"
    command = ["docker", "run", "-d", "--restart", "unless-stopped", "-p", publish, "testbed/app:1"]
    return host.check(command).strip()


def answers(url: str) -> Callable[[], bool]:
    """Return whether a URL answers 200."""

    def ask() -> bool:
        try:
            return httpx.get(url, timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    return ask


def median_latency(url: str, requests: int = 300) -> float:
    """Milliseconds that half of the requests on one connection take at most."""
    times = []
    with httpx.Client() as client:
        for _ in range(requests):
            began = time.perf_counter()
            assert client.get(url).status_code == 200
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def traces(host: Host) -> dict[str, object]:
    """What a gateway or a tunnel could leave behind on a host."""
    return {
        "containers": host.check(["docker", "ps", "-aq"]),
        "ports": host.listening_ports(),
        "keys": host.read_file("/root/.ssh/authorized_keys"),
        "files": host.check(
            ["sh", "-c", "ls -A /root/.ssh /var/lib/prefect-dstack 2>&1; ls /run | grep prefect; true"]
        ),
        "tunnels": host.exists_process("prefect-dstack/tunnels"),
    }
