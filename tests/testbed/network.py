"""The wires between hosts: a switch in a network namespace of its own, with what it refuses to forward.

The switch does not share this machine's network namespace, so that neither this machine's firewall nor that
of a Docker Engine on it has a say in what hosts tell each other. One cable leads from it to this machine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from tests.testbed.processes import run


@dataclass(frozen=True)
class Port:
    """A socket of the switch with the cable to one interface of a host."""

    name: str
    interface: str
    address: IPv4Interface

    @property
    def mac(self) -> str:
        """The hardware address of the host's interface; the same after a reboot."""
        return "02:00:" + ":".join(f"{octet:02x}" for octet in self.address.packed)


@dataclass
class Rules:
    """What the switch does not forward; names are those of ports."""

    partitioned: set[str] = field(default_factory=set)
    only_ssh: set[tuple[str, str]] = field(default_factory=set)
    """Pairs (from, to): between both, only SSH connections made by the first to the second pass."""
    isolated: set[frozenset[str]] = field(default_factory=set)

    def forget(self, ports: set[str]) -> None:
        """Drop what is said of ports."""
        self.partitioned -= ports
        self.only_ssh = {pair for pair in self.only_ssh if not ports.intersection(pair)}
        self.isolated = {pair for pair in self.isolated if not ports & pair}

    def text(self, uplink: IPv4Address) -> str:
        """The rules in the language of `nft`."""
        lines = [
            # Addresses stay resolved, so that a partition is what it is between real networks: silence.
            "ether type arp accept",
            f'oifname "uplink" ether type ip ip daddr != {uplink} drop',
        ]
        for port in sorted(self.partitioned):
            lines += [f'iifname "{port}" drop', f'oifname "{port}" drop']
        for client, server in sorted(self.only_ssh):
            lines += [
                f'iifname "{client}" oifname "{server}" tcp dport 22 accept',
                f'iifname "{server}" oifname "{client}" tcp sport 22 accept',
                f'iifname "{client}" oifname "{server}" drop',
                f'iifname "{server}" oifname "{client}" drop',
            ]
        for pair in sorted(sorted(pair) for pair in self.isolated):
            lines += [f'iifname "{a}" oifname "{b}" drop' for a, b in (pair, pair[::-1])]
        chain = "type filter hook forward priority 0; policy accept;\n" + "\n".join(lines)
        return f"table bridge rules {{\nchain forward {{\n{chain}\n}}\n}}\n"


class Switch:
    """The switch of a testbed: one bridge per network.

    Args:
        name: Name of its network namespace, and of the interface that is this machine's end of the uplink.
        network: The public network; its first address is this machine's.
    """

    def __init__(self, name: str, network: IPv4Network) -> None:
        self.name = name
        self.network = network
        self._rules = Rules()
        self._bridges: dict[IPv4Network, str] = {}
        self._lock = threading.RLock()
        run(["ip", "netns", "add", name])
        run(["ip", "link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", name])
        run(["ip", "address", "add", f"{self.address}/{network.prefixlen}", "dev", name])
        run(["ip", "link", "set", name, "up"])
        self._ip(f"link set uplink master {self._bridge(network)} up")
        with self.changed_rules():
            pass

    @property
    def address(self) -> IPv4Address:
        """This machine's address on the public network."""
        return self.network[1]

    def attach(self, port: Port, pid: int) -> None:
        """Lay a cable from a port to an interface in the network namespace of the process `pid`."""
        peer = f"peer name {port.interface} address {port.mac} netns {pid}"
        bridge = self._bridge(port.address.network)
        self._ip(f"link add {port.name} type veth {peer}", f"link set {port.name} master {bridge} up")

    def detach(self, port: Port) -> None:
        """Pull the cable out: from then on nothing that the host does is heard."""
        self._ip(f"link delete {port.name}")

    @contextmanager
    def changed_rules(self) -> Iterator[Rules]:
        """Give the rules to change; the switch obeys all changes at once, at the end."""
        reset = "table bridge rules {}\ndelete table bridge rules\n"
        with self._lock:
            yield self._rules
            command = ["ip", "netns", "exec", self.name, "nft", "-f", "-"]
            run(command, input=reset + self._rules.text(self.address))

    def _bridge(self, network: IPv4Network) -> str:
        with self._lock:
            return self._bridges.get(network) or self._new_bridge(network)

    def _new_bridge(self, network: IPv4Network) -> str:
        name = f"bridge{len(self._bridges)}"
        self._ip(f"link add {name} type bridge forward_delay 0", f"link set {name} up")
        if network != self.network:
            # This machine's way there ends at an address that nobody has. Without it, it would take the
            # default route, to whatever has such an address elsewhere. The metric is for several testbeds.
            metric = str(self.network.network_address.packed[2] + 1)
            way = ["via", str(self.network[-2]), "dev", self.name, "metric", metric]
            run(["ip", "route", "add", str(network), *way])
        self._bridges[network] = name
        return name

    def _ip(self, *commands: str) -> None:
        run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(commands) + "\n")
