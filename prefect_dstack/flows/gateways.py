"""Creating and deleting gateways."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from prefect_dstack.blocks import DstackGateway
from prefect_dstack.configurations import GatewayConfiguration, load_configuration
from prefect_dstack.domain.support import check_support
from prefect_dstack.errors import (
    ConfigurationError,
    ConflictError,
    GatewayError,
    HostError,
    NotFoundError,
    PrefectDstackError,
    UnsupportedKeyError,
)
from prefect_dstack.flows.renew_certificates import ensure_certificates
from prefect_dstack.flows.served import served_flow
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.tasks import documents, gateway_places, inventory
from prefect_dstack.tasks import gateways as tasks
from prefect_dstack.tasks.certificates import check_files
from prefect_dstack.tasks.records import all_records

__all__ = ["create_gateway", "delete_gateway", "missing_records"]


@served_flow(name="create-gateway")
def create_gateway(
    configuration: str | Path | dict[str, Any] | GatewayConfiguration, name: str | None = None
) -> str:
    """Create a gateway, or bring it up to date with its configuration.

    Args:
        configuration: The path of a `*.dstack.yml` of `type: gateway`, YAML text, a mapping or a model.
        name: The name of the gateway; default: the configuration's.

    Returns:
        Its name.

    Raises:
        ConfigurationError: If the configuration cannot be accepted.
        CertificateError: If the certificate that it names cannot be used, or is not for its services.
        GatewayError: If it cannot be started.
    """
    loaded = load_configuration(configuration, name=name)
    if not isinstance(loaded, GatewayConfiguration):
        raise ConfigurationError(
            f"is a {loaded.type}, and this takes a gateway", source=loaded.source_name, key="type"
        )
    if loaded.name is None:
        raise ConfigurationError("is missing; add 'name: my-gateway'", source=loaded.source_name, key="name")
    check_gateway_support(loaded)
    check_files(loaded, _known_routes(loaded.name), must_exist=True)
    before = documents.load(DstackGateway, loaded.name)
    block = DstackGateway(
        configuration=loaded.model_dump(mode="json", exclude_unset=True) | {"type": "gateway"},
        directory=str(loaded.directory),
    )
    documents.save(block, loaded.name)
    inventory.forget()
    try:
        if loaded.backend == "aws":
            block.details = tasks.provision_gateway(loaded.name).model_dump(mode="json")
            documents.save(block, loaded.name)
            inventory.forget()
        state = tasks.create_gateway(loaded.name)
        if state.base_port not in state.http_ports:
            _warn_of_taken_port(loaded.name, state)
        ensure_certificates(loaded.name, list(state.routes.values()))
    except BaseException:
        if before is None:
            _remove(loaded.name)
        else:
            documents.save(before, loaded.name)
        inventory.forget()
        raise
    return loaded.name


def _warn_of_taken_port(name: str, state: GatewayState) -> None:
    place = gateway_places.gateway(name).place
    if not place.port_is_free(state.base_port, state.bind_address):
        get_run_logger().warning(
            "gateway %s: its port %d is in use by another program: end that, or choose another",
            *(name, state.base_port),
        )


def _known_routes(name: str) -> list[Route]:
    """List what a gateway routes, as far as it can be asked: it may not be there yet, or any more."""
    with contextlib.suppress(PrefectDstackError):
        state = gateway_places.state(name)
        return [] if state is None else list(state.routes.values())
    return []


def missing_records(name: str) -> list[str]:
    """Tell which DNS records a gateway in a cloud lacks, since their zone is not in its account.

    Args:
        name: The gateway.

    Returns:
        The records as a zone file has them.
    """
    block = documents.load(DstackGateway, name)
    if block is None or "records" not in block.details:
        return []
    # boto3 takes its time to import, which gateways elsewhere need not pay.
    from prefect_dstack.backends.aws import CreatedGateway

    created = CreatedGateway.model_validate(block.details)
    return [str(record) for record in created.records if not record.created]


@served_flow(name="delete-gateway", flow_run_name="delete gateway {name}")
def delete_gateway(name: str, force: bool = False) -> None:
    """Delete a gateway with all that was made for it.

    Args:
        name: The gateway.
        force: Forget it even if its machine cannot be reached, and leave there what is there.

    Raises:
        NotFoundError: If there is no such gateway.
        ConflictError: If services use it.
        GatewayError: If its machine cannot be reached.
    """
    exists = name in documents.names(DstackGateway)
    if name == gateway_places.LOCAL:
        remains = gateway_places.state(name) is not None
    else:
        remains = not exists and name in gateway_places.in_cloud()
    if not exists and not remains:
        known = ", ".join(documents.names(DstackGateway)) or "none"
        raise NotFoundError(f"{name}: there is no such gateway; there are: {known}")
    users = [record.name for record in all_records() if record.gateway == name and record.active is not None]
    if users:
        raise ConflictError(f"{name}: serves {', '.join(users)}; stop them first")
    try:
        tasks.delete_gateway(name)
    except (GatewayError, HostError) as error:
        if not force:
            raise GatewayError(
                f"gateway '{name}' cannot be removed: {error}; if its machine is gone for good: "
                f"prefect-dstack gateway delete {name} --force"
            ) from error
        get_run_logger().warning("gateway %s: forgotten, and left where it may be: %s", name, error)
    if exists:
        documents.delete(DstackGateway, name)
        inventory.forget()
    get_run_logger().info("gateway %s: deleted", name)


def _remove(name: str) -> None:
    """Leave nothing of a gateway that could not be created, not even a machine that costs money."""
    try:
        tasks.delete_gateway(name)
    except PrefectDstackError as error:
        get_run_logger().warning("gateway %s: not all of it could be removed: %s", *(name, error))
        if gateway_places.configuration_of(name).backend == "aws":
            return
    documents.delete(DstackGateway, name)


def check_gateway_support(configuration: GatewayConfiguration) -> None:
    """Refuse a gateway of which anything would be ignored.

    Args:
        configuration: The gateway.

    Raises:
        UnsupportedKeyError: For the first such key.
        ConfigurationError: If it needs what is not configured.
    """
    check_support(configuration)
    reasons: dict[str, str] = {}
    if configuration.backend != "aws":
        reasons |= dict.fromkeys(("region", "instance_type", "tags"), "needs 'backend: aws'")
    for key, reason in reasons.items():
        if getattr(configuration, key):
            raise UnsupportedKeyError(
                reason, source=configuration.source_name, line=configuration.line_of(key), key=key
            )
    certificate = configuration.effective_certificate
    if certificate is not None and certificate.challenge == "dns-01" and inventory.inventory().aws is None:
        raise ConfigurationError(
            "dns-01 writes to Route 53: save a DstackAwsBackend block named 'default', or use http-01",
            source=configuration.source_name,
            line=configuration.line_of("certificate.challenge"),
            key="certificate.challenge",
        )
