"""The wires between hosts: a switch in a network namespace of its own, with what it refuses to forward.

The switch does not share this machine's network namespace, so that neither this machine's firewall nor that
of a Docker Engine on it has a say in what hosts tell each other. One cable leads from it to this machine.
"""

from __future__ import annotations

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
        self.rules = Rules()
        self._bridges: dict[IPv4Network, str] = {}
        run(["ip", "netns", "add", name])
        run(["ip", "link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", name])
        run(["ip", "address", "add", f"{self.address}/{network.prefixlen}", "dev", name])
        run(["ip", "link", "set", name, "up"])
        self._ip(f"link set uplink master {self._bridge(network)} up")
        self.apply_rules()

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

    def apply_rules(self) -> None:
        """Make the switch obey `rules` as they are now, in one step."""
        reset = "table bridge rules {}\ndelete table bridge rules\n"
        run(["ip", "netns", "exec", self.name, "nft", "-f", "-"], input=reset + self.rules.text(self.address))

    def _bridge(self, network: IPv4Network) -> str:
        if network not in self._bridges:
            name = f"bridge{len(self._bridges)}"
            self._ip(f"link add {name} type bridge forward_delay 0", f"link set {name} up")
            self._bridges[network] = name
        return self._bridges[network]

    def _ip(self, *commands: str) -> None:
        run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(commands) + "\n")
