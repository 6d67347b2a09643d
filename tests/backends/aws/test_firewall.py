from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prefect_dstack.backends.aws.firewall import Rule, changes, read_rules

purposes = st.sampled_from(["deployer a", "deployer b", "gateway port", ""])
rules = st.builds(
    Rule,
    port=st.sampled_from([22, 80, 443, 20000]),
    source=st.sampled_from(["10.0.0.1/32", "0.0.0.0/0", "::/0", "sg-0123456789abcdef0"]),
    purpose=purposes,
) | st.builds(Rule, port=st.none(), source=st.just("sg-0123456789abcdef0"), purpose=purposes)
rule_sets = st.lists(rules, unique_by=lambda rule: (rule.port, rule.source))


@given(rule_sets)
def test_what_is_written_is_read_back(written: list[Rule]) -> None:
    assert read_rules(rule.permission() for rule in written) == (set(written), [])


@given(rule_sets, rule_sets)
def test_after_the_changes_there_is_what_is_wanted_and_what_must_stay(
    present: list[Rule], wanted: list[Rule]
) -> None:
    def keep(rule: Rule) -> bool:
        return rule.purpose == "deployer b"

    add, revoke = changes(present, wanted, keep)
    after = {(r.port, r.source) for r in present if r not in revoke} | {(r.port, r.source) for r in add}
    need = {(r.port, r.source) for r in wanted}
    assert need <= after
    assert all((r.port, r.source) in need or keep(r) for r in present if r not in revoke)
    assert not {(r.port, r.source) for r in add} & {(r.port, r.source) for r in present}


def test_ranges_protocols_and_prefix_lists_that_we_never_write_are_strange() -> None:
    permissions: list[dict[str, Any]] = [
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0", "Description": "oops"}]},
        {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 65535, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "udp", "FromPort": 53, "ToPort": 53, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
        {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "PrefixListIds": [{"PrefixListId": "pl-1"}]},
    ]
    found, strange = read_rules(permissions)
    assert found == set()
    assert strange == [
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 65535, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "udp", "FromPort": 53, "ToPort": 53, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
        {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "PrefixListIds": [{"PrefixListId": "pl-1"}]},
    ]
