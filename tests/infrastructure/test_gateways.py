"""A gateway as infrastructure: what is known of it before, and without, a machine."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_dstack.configurations import GatewayConfiguration, load_configuration
from prefect_dstack.errors import GatewayError
from prefect_dstack.infrastructure.gateways import ManagedGateway


class Cloud:
    """A backend that creates the machine of a gateway, and has not done so."""

    def gateway_machines(self) -> Any:
        return object()

    def gateway_host(self, name: str, configuration: GatewayConfiguration, machine: object) -> Any:
        raise GatewayError("its machine is not known")


@pytest.fixture
def gateway() -> ManagedGateway:
    configuration = load_configuration({"type": "gateway", "name": "front", "backend": "aws", "region": "r"})
    assert isinstance(configuration, GatewayConfiguration)
    return ManagedGateway("front", configuration, Cloud())


def test_one_in_a_cloud_is_bound_to_no_machine_of_ours_before_it_has_one(gateway: ManagedGateway) -> None:
    assert not gateway.bound_to_machine


def test_one_in_a_cloud_has_no_address_before_it_has_a_machine(gateway: ManagedGateway) -> None:
    assert gateway.address == ""
    with pytest.raises(GatewayError, match="its machine is not known"):
        _ = gateway.host
