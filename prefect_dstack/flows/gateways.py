"""Creating and deleting gateways."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from prefect_dstack.asynchronous import asynchronous
from prefect_dstack.backends.base import EditsDns, ProvidesGatewayMachines
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
from prefect_dstack.flows.served import served_flow
from prefect_dstack.gateways.choice import LOCAL
from prefect_dstack.gateways.state import GatewayState, Route
from prefect_dstack.infrastructure.certificates import check_files
from prefect_dstack.infrastructure.gateways import ManagedGateway
from prefect_dstack.infrastructure.infrastructure import Infrastructure
from prefect_dstack.services.certificates import ensure_certificates
from prefect_dstack.services.location import refuse_gateway_elsewhere
from prefect_dstack.store import documents
from prefect_dstack.store.records import all_records
from prefect_dstack.store.sources import resolve_infrastructure
from prefect_dstack.tasks import gateways as tasks

__all__ = ["acreate_gateway", "adelete_gateway", "create_gateway", "delete_gateway", "missing_records"]


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
        ConflictError: If a gateway of that name is on another machine.
        GatewayError: If it cannot be started.
    """
    loaded = load_configuration(configuration, name=name)
    if not isinstance(loaded, GatewayConfiguration):
        raise ConfigurationError(
            f"is a {loaded.type}, and this takes a gateway", source=loaded.source_name, key="type"
        )
    if loaded.name is None:
        raise ConfigurationError("is missing; add 'name: my-gateway'", source=loaded.source_name, key="name")
    infrastructure = resolve_infrastructure()
    check_gateway_support(loaded, infrastructure)
    before = documents.load(DstackGateway, loaded.name)
    block = DstackGateway(
        configuration=loaded.model_dump(mode="json", exclude_unset=True) | {"type": "gateway"},
        directory=str(loaded.directory),
        details={} if before is None else before.details,
    )
    # A host that only this gateway names belongs to a backend once its block is there.
    gateway = _gateway(loaded, infrastructure)
    refuse_gateway_elsewhere(gateway, infrastructure.here, "apply")
    if gateway.bound_to_machine:
        block.location = infrastructure.here.model_dump()
    check_files(gateway, _known_routes(gateway), must_exist=True)
    documents.save(block, loaded.name)
    infrastructure = resolve_infrastructure()
    gateway = _gateway(loaded, infrastructure)
    try:
        created = tasks.provision_gateway(gateway) if gateway.machines is not None else None
        if created is not None:
            block.details = created.model_dump(mode="json")
            documents.save(block, loaded.name)
        state = tasks.create_gateway(gateway)
        if state.base_port not in state.http_ports:
            _warn_of_taken_port(gateway, state)
        ensure_certificates(infrastructure, gateway, list(state.routes.values()))
    except BaseException:
        if before is None:
            _remove(gateway)
        else:
            documents.save(before, loaded.name)
        raise
    return loaded.name


def _gateway(configuration: GatewayConfiguration, infrastructure: Infrastructure) -> ManagedGateway:
    gateway = infrastructure.new_gateway(configuration)
    gateway.require_backend()
    return gateway


def _warn_of_taken_port(gateway: ManagedGateway, state: GatewayState) -> None:
    if not gateway.port_is_free(state.base_port):
        get_run_logger().warning(
            "gateway %s: its port %d is in use by another program: end that, or choose another",
            *(gateway.name, state.base_port),
        )


def _known_routes(gateway: ManagedGateway) -> list[Route]:
    """Return what a gateway routes, as far as it can be asked: it may not be there yet, or any more."""
    with contextlib.suppress(PrefectDstackError):
        state = gateway.state()
        return [] if state is None else list(state.routes.values())
    return []


def missing_records(name: str) -> list[str]:
    """Return the DNS records that a gateway in a cloud lacks, as their zone is not in its account.

    Args:
        name: The gateway.

    Returns:
        The records as a zone file has them.
    """
    created = resolve_infrastructure().gateway(name).created
    return [] if created is None else list(created.missing_records)


@served_flow(name="delete-gateway", flow_run_name="delete gateway {name}")
def delete_gateway(name: str, force: bool = False) -> None:
    """Delete a gateway with all that was made for it.

    Args:
        name: The gateway.
        force: Forget it even if its machine cannot be reached, and leave there what is there.

    Raises:
        NotFoundError: If there is no such gateway.
        ConflictError: If services use it, or it is on another machine.
        GatewayError: If its machine cannot be reached.
    """
    infrastructure = resolve_infrastructure()
    exists = name in infrastructure.configured_gateways
    gateway = _known_gateway(name, infrastructure)
    if gateway is None:
        known = ", ".join(infrastructure.configured_gateways) or "none"
        raise NotFoundError(f"{name}: there is no such gateway; there are: {known}")
    if not force:
        refuse_gateway_elsewhere(gateway, infrastructure.here, "delete")
    users = [record.name for record in all_records() if record.gateway == name and record.active is not None]
    if users:
        raise ConflictError(f"{name}: serves {', '.join(users)}; stop them first")
    try:
        tasks.delete_gateway(gateway)
    except (GatewayError, HostError) as error:
        if not force:
            raise GatewayError(
                f"gateway '{name}' cannot be removed: {error}; if its machine is gone for good: "
                f"prefect-dstack gateway delete {name} --force"
            ) from error
        get_run_logger().warning("gateway %s: forgotten, and left where it may be: %s", name, error)
    if exists:
        documents.delete(DstackGateway, name)
    get_run_logger().info("gateway %s: deleted", name)


def _known_gateway(name: str, infrastructure: Infrastructure) -> ManagedGateway | None:
    """Return a gateway that is configured, or of which a machine is left somewhere; None: neither."""
    if name in infrastructure.configured_gateways:
        return infrastructure.gateway(name)
    if name == LOCAL:
        gateway = infrastructure.gateway(name)
        return None if gateway.state() is None else gateway
    for backend in infrastructure.backends.values():
        if isinstance(backend, ProvidesGatewayMachines) and name in backend.gateway_machines().names():
            return ManagedGateway(name, GatewayConfiguration(name=name, backend=backend.name), backend)
    return None


def _remove(gateway: ManagedGateway) -> None:
    """Leave nothing of a gateway that could not be created, not even a machine that costs money."""
    try:
        tasks.delete_gateway(gateway)
    except PrefectDstackError as error:
        get_run_logger().warning("gateway %s: not all of it could be removed: %s", *(gateway.name, error))
        if gateway.machines is not None:
            return
    documents.delete(DstackGateway, gateway.name)


def check_gateway_support(
    configuration: GatewayConfiguration, infrastructure: Infrastructure | None = None
) -> None:
    """Refuse a gateway of which anything would be ignored.

    Args:
        configuration: The gateway.
        infrastructure: What it may need; None: only its keys are checked.

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
    if infrastructure is None or certificate is None or certificate.challenge != "dns-01":
        return
    if not any(isinstance(backend, EditsDns) for backend in infrastructure.backends.values()):
        raise ConfigurationError(
            "dns-01 writes to Route 53: save a DstackAwsBackend block named 'default', or use http-01",
            source=configuration.source_name,
            line=configuration.line_of("certificate.challenge"),
            key="certificate.challenge",
        )


acreate_gateway = asynchronous(create_gateway)
adelete_gateway = asynchronous(delete_gateway)
