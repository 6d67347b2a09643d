"""The route of a service, and the URL that its users get: decisions."""

from __future__ import annotations

from collections.abc import Callable

from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.record import Endpoint, now
from prefect_dstack.errors import ConflictError, UnsupportedKeyError
from prefect_dstack.gateways.health import HealthCheck
from prefect_dstack.gateways.state import GatewayState, Route, RouteModel, free_port
from prefect_dstack.gateways.template import ACME_PATH

DEFAULT_QUEUE_TIMEOUT = 60
# What a service that may have no replicas holds while the first one starts.
HOLD_LIMIT = 10_000
HOLD_TIMEOUT = 300

__all__ = ["endpoint_of", "models_url", "route_of"]


def route_of(
    configuration: ServiceConfiguration, state: GatewayState, is_port_free: Callable[[int], bool]
) -> Route:
    """Return the route of a service, having checked that the gateway has room for it.

    Args:
        configuration: The service.
        state: What the gateway routes. Where the route is to be taken at once, this is called under the
            gateway's lock.
        is_port_free: Returns whether no other program on the gateway's machine listens on a port.

    Returns:
        The route, without replicas.

    Raises:
        ConflictError: If another service or program holds what it needs.
        UnsupportedKeyError: If the gateway cannot do what is asked.
    """
    name = configuration.name or ""
    hosts = configuration.host_names(state.domain)
    local = state.bind_address == "127.0.0.1"
    auth = configuration.auth.enabled if configuration.auth is not None else not local
    if configuration.https is True and state.https_port is None:
        raise UnsupportedKeyError(
            f"gateway '{state.name}' has no HTTPS; give it a 'domain' or a 'certificate'",
            source=configuration.source_name,
            line=configuration.line_of("https"),
            key="https",
        )
    if state.https_port is not None and f"{configuration.path_prefix}/".startswith(ACME_PATH):
        raise UnsupportedKeyError(
            "is where gateways with HTTPS prove their names; choose another",
            source=configuration.source_name,
            line=configuration.line_of("path_prefix"),
            key="path_prefix",
        )
    port = _port(configuration, state, is_port_free, has_host=bool(hosts))
    known = state.routes.get(name)
    route = Route(
        service=name,
        hosts=hosts,
        port=port,
        path_prefix=configuration.path_prefix,
        strip_prefix=configuration.strip_prefix and configuration.path_prefix != "/",
        auth=auth,
        forward_authorization=configuration.auth is not None and configuration.auth.forward,
        rate_limits=configuration.rate_limits,
        client_max_body_size=configuration.client_max_body_size,
        timeouts=configuration.timeouts,
        max_concurrency=configuration.max_concurrency,
        queue_timeout=configuration.queue_timeout or DEFAULT_QUEUE_TIMEOUT,
        cors=configuration.cors,
        https_redirect=state.https_port is not None
        and port == state.base_port
        and configuration.https is not False,
        health_check=_health_check(configuration),
        access_log=configuration.access_log,
        model=_model(configuration, None if known is None else known.model),
        hold_limit=HOLD_LIMIT if (configuration.replica_range.min or 0) == 0 else 0,
        hold_timeout=configuration.queue_timeout or HOLD_TIMEOUT,
    )
    state.with_route(route)
    return route


def _port(
    configuration: ServiceConfiguration,
    state: GatewayState,
    is_port_free: Callable[[int], bool],
    *,
    has_host: bool,
) -> int:
    asked = configuration.port.gateway_port
    name = configuration.name or ""
    known = state.routes.get(name)

    if asked is not None:
        if asked not in state.http_ports and not is_port_free(asked):
            raise ConflictError(
                f"port {asked} of gateway '{state.name}' is in use by another program, choose another port"
            )
        return asked
    if has_host or state.bind_address != "127.0.0.1":
        return state.base_port
    wanted = known.port if known is not None and known.port >= state.base_port else state.base_port
    return free_port(state, name, wanted, is_port_free, configuration.path_prefix)


def _model(configuration: ServiceConfiguration, known: RouteModel | None) -> RouteModel | None:
    model = configuration.model
    if model is None:
        return None
    kept = known is not None and known.name == model.name
    created = known.created if known is not None and kept else int(now().timestamp())
    return RouteModel(name=model.name, prefix=model.prefix, created=created)


def _health_check(configuration: ServiceConfiguration) -> HealthCheck | None:
    probe = configuration.repeated_probe
    if probe is None:
        return None
    return HealthCheck(
        method=probe.method,
        path=probe.url,
        headers=tuple((header.name, header.value) for header in probe.headers),
        body=probe.body,
        interval=probe.interval,
        timeout=probe.timeout,
    )


def endpoint_of(
    configuration: ServiceConfiguration,
    route: Route,
    state: GatewayState,
    address: str,
    revision: int,
    replicas: list[str],
    *,
    changed: bool = True,
) -> Endpoint:
    """Return where a service answers.

    Args:
        configuration: The service.
        route: Its route.
        state: The gateway's.
        address: Where the gateway is reached, for a route without a host name.
        revision: The revision that serves.
        replicas: The names of its replicas.
        changed: Whether the deployment changed anything.

    Returns:
        The endpoint.
    """
    secure = route.https_redirect and state.https_port is not None
    port = state.https_port if secure and state.https_port is not None else route.port
    host = route.hosts[0] if route.hosts else address
    usual = 443 if secure else 80
    url = f"{'https' if secure else 'http'}://{host}{'' if port == usual else f':{port}'}"
    url += route.path_prefix.rstrip("/")
    model = configuration.model
    return Endpoint(
        url=url,
        openai_base_url=None if model is None else url + model.prefix.rstrip("/"),
        gateway_openai_base_url=None if model is None else models_url(state, address),
        model=None if model is None else model.name,
        auth=route.auth,
        service=configuration.name or "",
        revision=revision,
        replicas=replicas,
        changed=changed,
    )


def models_url(state: GatewayState, address: str) -> str | None:
    """Return where a gateway has the models of all its services, as OpenAI's clients take it.

    Args:
        state: The state of the gateway.
        address: Where the gateway is reached, if it has no domain.

    Returns:
        The base URL; None if no service of it has a model.
    """
    host = state.models_host or address
    if state.models_host is None and state.models_port is None:
        return None
    secure = state.https_port is not None
    port = state.models_port or (state.https_port if secure else state.base_port)
    usual = 443 if secure else 80
    return f"{'https' if secure else 'http'}://{host}{'' if port == usual else f':{port}'}/v1"
