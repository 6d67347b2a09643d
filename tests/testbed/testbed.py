"""A testbed: a network, and the hosts on it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.testbed.cgroups import ControlGroup
from tests.testbed.host import Host, Machine
from tests.testbed.network import Port, Switch
from tests.testbed.processes import run
from tests.testbed.slots import Slot

INTERNAL = "10.78.0.0/24"
"""The usual internal network: this machine is not on it."""

_PLACES = 240


class Testbed:
    """A network with hosts; a context manager.

    The public network is 10.77.0.0/24, or the next one after it (10.77.1.0/24, ...) where another testbed
    runs on the machine. This machine is its first address. No route leads out of it.
    """

    __test__ = False

    def __init__(self) -> None:
        self._slot = Slot("pd-testbed")
        try:
            self.network = IPv4Network(f"10.77.{self._slot.number}.0/24")
            self.switch = Switch(self._slot.name, self.network)
            self.identity_file = self._slot.directory / "identity"
            run(
                [
                    "ssh-keygen",
                    "-q",
                    "-t",
                    "ed25519",
                    "-N",
                    "",
                    "-C",
                    "testbed",
                    "-f",
                    str(self.identity_file),
                ]
            )
        except BaseException:
            self._slot.close()
            raise
        self._hosts: dict[str, Host] = {}
        self._places: dict[str, int] = {}
        self._last_place: int = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Testbed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """This machine's address as hosts see it."""
        return str(self.switch.address)

    @property
    def ports(self) -> Sequence[Port]:
        """This machine's socket on the switch, for `Host.isolate_from`."""
        return [Port("uplink", "", IPv4Interface(f"{self.switch.address}/{self.network.prefixlen}"))]

    @property
    def public_key(self) -> str:
        """The public half of the identity that may log in to every host."""
        return self.identity_file.with_suffix(".pub").read_text().strip()

    def host(
        self,
        name: str,
        *,
        public: bool = True,
        internal_network: str | None = None,
        start: bool = True,
        **machine: Any,
    ) -> Host:
        """Make a host, switched on and ready.

        Args:
            name: Its host name, unlike that of any other host.
            public: Whether it is on the public network. One that is not can be reached from other hosts only.
            internal_network: A network on which it is too, without this machine; for example `10.78.0.0/24`.
            start: Whether to switch it on.
            **machine: What it is made of: see `Machine`.
        """
        if not public and internal_network is None:
            raise ValueError(f"{name} would be on no network")
        number = self._take_place(name)
        ports = []
        if public:
            ports.append(Port(f"public{number}", "eth0", _interface(self.network, number)))
        if internal_network is not None:
            ports.append(Port(f"inner{number}", "eth1", _interface(IPv4Network(internal_network), number)))
        host = Host(
            name,
            directory=self._slot.directory / f"{number}-{name}",
            group=ControlGroup(f"{self._slot.name}/{number}-{name}"),
            switch=self.switch,
            ports=ports,
            machine=Machine(**machine),
            identity_file=self.identity_file,
        )
        with self._lock:
            self._hosts[name] = host
        if start:
            host.start()
        return host

    def hosts(self, *names: str, **options: Any) -> list[Host]:
        """Make several hosts that are alike, and switch them on together; `options` as for `host`."""
        hosts = [self.host(name, **options, start=False) for name in names]
        for host in hosts:
            host.start(wait=False)
        for host in hosts:
            host.wait_until_ready()
        return hosts

    def remove(self, *hosts: Host) -> None:
        """Cut the power of hosts and throw their disks away; their names are free again."""
        for host in hosts:
            host.remove()
            with self._lock:
                del self._hosts[host.name], self._places[host.name]

    def known_hosts(self, path: Path) -> Path:
        """Write a `known_hosts` file with the keys of all hosts that are switched on, and return its path."""
        running = [host for host in self._hosts.values() if host.running]
        path.write_text("".join(f"{host.known_hosts_line}\n" for host in running))
        return path

    def close(self) -> None:
        """Remove every host, and the network."""
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(Host.power_off, self._hosts.values()))
        finally:
            self._hosts.clear()
            self._slot.close()

    def _take_place(self, name: str) -> int:
        """The number of a new host; those of removed hosts come again only when all others were used."""
        with self._lock:
            if name in self._places:
                raise ValueError(f"there is a host {name} already")
            numbers = [*range(self._last_place + 1, _PLACES + 1), *range(1, self._last_place + 1)]
            free = [number for number in numbers if number not in self._places.values()]
            if not free:
                raise RuntimeError(f"all {_PLACES} places for hosts are taken")
            self._places[name] = self._last_place = free[0]
            return self._last_place


def _interface(network: IPv4Network, number: int) -> IPv4Interface:
    return IPv4Interface(f"{network[number + 9]}/{network.prefixlen}")
