"""The gateways, and what they route."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.blocks import DstackGateway
from prefect_dstack.errors import PrefectDstackError
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.tasks import documents, gateway_places
from prefect_dstack.tasks.certificates import CertificateStatus, certificates

__all__ = ["GatewayOverview", "gateway_overview"]


class GatewayOverview(BaseModel):
    """One gateway."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of the gateway.")
    backend: str = Field(description="Where it runs.")
    address: str = Field(description="Where it is reached.")
    domain: str | None = Field(description="The domain below which services have names.")
    state: str = Field(description="`running`, or why not.")
    services: list[str] = Field(description="The services that it routes.")
    certificates: list[CertificateStatus] = Field(
        default_factory=list, description="The certificates that it has."
    )


@shared_connections()
def gateway_overview() -> list[GatewayOverview]:
    """Look at every gateway.

    Returns:
        The gateways; the one of this machine only while it runs.
    """
    rows = []
    for name in dict.fromkeys([gateway_places.LOCAL, *documents.names(DstackGateway)]):
        configuration = gateway_places.configuration_of(name)
        known: list[CertificateStatus] = []
        try:
            state = gateway_places.state(name)
            condition = "running" if gateway_places.runs(name) else "stopped"
            if state is not None and state.https_port is not None:
                known = certificates(name)
        except PrefectDstackError as error:
            state, condition = None, str(error)
        if state is None and gateway_places.is_implicit(name):
            continue
        rows.append(
            GatewayOverview(
                name=name,
                backend=configuration.backend,
                address=gateway_places.address(name),
                domain=configuration.domain,
                state=condition,
                services=[] if state is None else sorted(state.routes),
                certificates=known,
            )
        )
    return rows
