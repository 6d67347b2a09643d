from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefect_dstack.backends.fleet import Fleet, FleetHost, fleet_of
from prefect_dstack.configurations import FleetConfiguration, load_configuration
from prefect_dstack.errors import ConfigurationError
from prefect_dstack.hosts.access import SshAccess

PIN = "SHA256:" + "a" * 43


def configuration(**keys: Any) -> FleetConfiguration:
    loaded = load_configuration({"type": "fleet", "name": "lab", **keys})
    assert isinstance(loaded, FleetConfiguration)
    return loaded


def secret(name: str) -> str:
    return f"the value of {name}"


def test_what_holds_for_all_hosts_is_given_to_each() -> None:
    fleet = fleet_of(
        configuration(
            ssh_config={
                "user": "ubuntu",
                "port": 2222,
                "identity_file": "keys/lab",
                "network": "10.0.0.0/24",
                "proxy_jump": {"hostname": "door", "user": "me", "ssh_key": "${{ secrets.DOOR }}"},
                "hosts": ["10.0.0.5", {"hostname": "10.0.0.6", "user": "root", "port": 22, "host_key": PIN}],
            }
        ),
        secret,
    )
    first, second = fleet.hosts
    assert (first.user, first.port, first.network) == ("ubuntu", 2222, "10.0.0.0/24")
    assert first.identity_file == Path.cwd() / "keys/lab"
    assert first.proxy_jump is not None
    assert first.proxy_jump.ssh_key is not None
    assert first.proxy_jump.ssh_key.get_secret_value() == "the value of DOOR"
    assert (second.user, second.port, second.host_key, second.name) == ("root", 22, PIN, "10.0.0.6")
    assert first.name == "10.0.0.5:2222"


def test_a_key_of_its_own_replaces_the_common_one() -> None:
    fleet = fleet_of(
        configuration(
            ssh_config={
                "identity_file": "common",
                "hosts": ["a", {"hostname": "b", "ssh_key": "${{ secrets.B }}"}],
            }
        ),
        secret,
    )
    assert fleet.hosts[0].identity_file is not None
    assert fleet.hosts[1].identity_file is None
    assert fleet.hosts[1].ssh_key is not None
    assert "the value of" not in repr(fleet)


def test_blocks_are_only_set_when_they_are_written() -> None:
    hosts = ["a", {"hostname": "b", "blocks": 2}]
    assert [host.blocks for host in fleet_of(configuration(ssh_config={"hosts": hosts}), secret).hosts] == [
        None,
        2,
    ]
    written = fleet_of(configuration(ssh_config={"hosts": hosts}, blocks="auto"), secret)
    assert [host.blocks for host in written.hosts] == ["auto", 2]


def test_a_fleet_without_hosts_or_with_twins_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ssh_config"):
        fleet_of(configuration(nodes=2), secret)
    with pytest.raises(
        ConfigurationError, match=r"ssh_config\.hosts\.1: the host a is there twice; keep one"
    ):
        fleet_of(configuration(ssh_config={"hosts": ["a", "a"]}), secret)


def test_a_fleet_survives_being_kept_as_json() -> None:
    fleet = Fleet(name="lab", hosts=(FleetHost(hostname="a", proxy_jump=SshAccess(hostname="door")),))
    assert Fleet.model_validate_json(fleet.model_dump_json()) == fleet


def test_hosts_with_one_access_share_it() -> None:
    one, two = (
        FleetHost(hostname="a", name="x", blocks=1),
        FleetHost(hostname="a", name="y", internal_ip="10.0.0.1"),
    )
    assert one.access == two.access == SshAccess(hostname="a")
    assert one.machine().publish_address == "127.0.0.1"
    assert two.machine().publish_address == "10.0.0.1"
