"""Security groups as packet filters on the hosts behind instances."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.testbed.host import Host


def rules_of(groups: Iterable[Any], members: dict[str, list[str]]) -> list[str]:
    """The rules of moto's security groups in the language of `nft`.

    Args:
        groups: Security groups of an instance.
        members: The addresses of the instances in each group, by its id.
    """
    lines = []
    for group in groups:
        for rule in group.ingress_rules:
            ports = "" if str(rule.ip_protocol) == "-1" else f"tcp dport {rule.from_port}-{rule.to_port} "
            sources = [rule.ip_range["CidrIp"]] if "CidrIp" in rule.ip_range else []
            sources += members.get(rule.source_group.get("GroupId"), [])
            lines += [f"ip saddr {source} {ports}accept" for source in sources if source != "0.0.0.0/0"]
            lines += [f"{ports}accept" for source in sources if source == "0.0.0.0/0"]
    return sorted(set(lines))


def apply(host: Host, rules: Iterable[str]) -> None:
    """Let only these packets, and answers, into a host."""
    chain = "\n".join(
        [
            # Before Docker's own address translation, so that published ports are filtered too.
            "type filter hook prerouting priority -150; policy accept;",
            'iifname != "eth0" accept',
            "ct state established,related accept",
            "meta l4proto icmp accept",
            *rules,
            "drop",
        ]
    )
    reset = "table inet groups {}\ndelete table inet groups\n"
    host.check(["nft", "-f", "-"], input=f"{reset}table inet groups {{ chain in {{ {chain}\n}}\n}}\n")
