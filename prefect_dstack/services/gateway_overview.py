"""The gateways, and what they route."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.errors import ConfigurationError, PrefectDstackError
from prefect_dstack.gateways.routing import models_url
from prefect_dstack.hosts.pool import shared_connections
from prefect_dstack.infrastructure.certificates import CertificateStatus, certificates
from prefect_dstack.store.sources import resolve_infrastructure

__all__ = ["GatewayOverview", "gateway_overview"]


class GatewayOverview(BaseModel):
    """One gateway."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The name of the gateway.")
    backend: str = Field(description="Where it runs.")
    address: str = Field(description="Where it is reached.")
    domain: str | None = Field(description="The domain below which services have names.")
    openai_base_url: str | None = Field(
        default=None, description="Where the models of all its services are; None: it has none."
    )
    state: str = Field(description="`running`, `elsewhere` with the machine, or why not.")
    services: list[str] = Field(description="The services that it routes.")
    certificates: list[CertificateStatus] = Field(
        default_factory=list, description="The certificates that it has."
    )


@shared_connections()
def gateway_overview() -> list[GatewayOverview]:
    """Inspect every gateway.

    Returns:
        The gateways; the one of this machine only while it runs.
    """
    infrastructure = resolve_infrastructure()
    rows = []
    for name in infrastructure.gateway_names:
        known: list[CertificateStatus] = []
        try:
            gateway = infrastructure.gateway(name)
        except ConfigurationError as error:
            rows.append(
                GatewayOverview(name=name, backend="", address="", domain=None, state=str(error), services=[])
            )
            continue
        try:
            state = gateway.state()
            condition = "running" if gateway.running() else "stopped"
            if infrastructure.here.differs_from(gateway.location):
                condition = f"elsewhere: {gateway.location}"
            if state is not None and state.https_port is not None:
                known = certificates(gateway)
        except PrefectDstackError as error:
            state, condition = None, str(error)
        if state is None and gateway.implicit:
            continue
        rows.append(
            GatewayOverview(
                name=name,
                backend=gateway.configuration.backend,
                address=gateway.address,
                domain=gateway.configuration.domain,
                openai_base_url=None if state is None else models_url(state, gateway.address),
                state=condition,
                services=[] if state is None else sorted(state.routes),
                certificates=known,
            )
        )
    return rows
