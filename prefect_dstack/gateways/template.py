"""From the desired state of a gateway to the files that HAProxy reads."""

from __future__ import annotations

import functools
import hashlib
import http
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

from prefect_dstack.gateways import access_log, latency, quoting, servers
from prefect_dstack.gateways.handover import FAILING, NONE_FAILING
from prefect_dstack.gateways.health import HealthCheck
from prefect_dstack.gateways.state import AcceptedToken, GatewayState, Route

if TYPE_CHECKING:
    import jinja2

__all__ = ["ACME_PATH", "CONFIGURATION", "NO_SERVICE", "REVISION_HEADER", "loaded_maps", "maps", "render"]

CONFIGURATION = "haproxy.cfg"
ROUTES = "routes.map"
TOKENS = "tokens.map"
CHALLENGES = "challenges.map"
BODY_LIMITS = "body-limits.map"
PREVIEWS = "previews.map"
MODELS = "models.map"
MODELS_BACKEND = "models"
BUCKETS = "buckets.map"
REVISION_HEADER = "X-Dstack-Revision"
"""Who asks for a revision that gets no requests names it here."""
MODEL_HEADER = "X-Dstack-Model"
"""Who asks for a model at the address of all of them may name it here, instead of in a body of JSON."""
SCRIPTS = ("body_limit.lua", "paths.lua", "hold.lua")
MODELS_SCRIPT = "models.lua"
HTTPS = "https"
ACME_PATH = "/.well-known/acme-challenge/"

# The Unix time of the year 9999: a token that never ends.
NEVER = 253402300799


# What the gateway itself says to applications: who asked, by which name and protocol, below which prefix. A
# client's word on the same is removed in every spelling that CGI takes for the same variable. So is `Proxy`,
# which CGI takes for a setting, and what is between two neighbours only.
GATEWAY_HEADERS = (
    "^(forwarded|x_forwarded_(for|host|port|prefix|proto|protocol|scheme|ssl)|x_real_ip|x_gateway_listener"
    "|proxy|connection|upgrade|http2_settings)$"
).replace("_", "[^a-z0-9]")


@dataclass(frozen=True)
class ErrorAnswer:
    """What a client is told when the gateway itself answers."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str:
        """JSON, in the shape that OpenAI clients read."""
        return json.dumps({"error": {"message": self.message, "type": self.code, "code": self.status}})

    @property
    def file(self) -> str:
        """The name of the file that holds the whole answer.

        Later versions of HAProxy give such files, and nothing else, to clients that speak no HTTP at all.
        """
        return f"errors/{self.status}.http"

    @property
    def response(self) -> str:
        """The whole answer, as it is sent."""
        headers = {
            "Content-Type": "application/json",
            "Content-Length": len(self.body.encode()),
            "Cache-Control": "no-cache",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines) + "\r\n\r\n" + self.body


NO_SERVICE = ErrorAnswer(404, "not_found", "No service answers to this host and path.")
TOO_LARGE = ErrorAnswer(413, "content_too_large", "The request body is too large.")
ERRORS = (
    ErrorAnswer(400, "bad_request", "The request is malformed."),
    ErrorAnswer(401, "unauthorized", "A valid token is needed.", {"WWW-Authenticate": "Bearer"}),
    ErrorAnswer(403, "forbidden", "The request is not allowed."),
    NO_SERVICE,
    ErrorAnswer(405, "method_not_allowed", "This method is not allowed."),
    ErrorAnswer(408, "request_timeout", "The request was not complete in time."),
    TOO_LARGE,
    ErrorAnswer(429, "too_many_requests", "Too many requests."),
    ErrorAnswer(500, "internal_error", "The gateway failed."),
    ErrorAnswer(502, "bad_gateway", "The service did not answer properly."),
    ErrorAnswer(
        503,
        "unavailable",
        "No replica of the service is free: none is ready, or all were busy for too long.",
        {"Retry-After": "5"},
    ),
    ErrorAnswer(504, "gateway_timeout", "The service did not answer in time."),
)


@dataclass(frozen=True)
class Limit:
    """A rate limit in HAProxy's terms.

    A window of `(burst + 1) / rps` seconds with room for `burst + 1` requests lets as many through at once,
    and as many over time, as a leaky bucket does.
    """

    table: str
    condition: str
    header: str | None
    requests: int
    period: int
    expire: int
    retry_after: int


def render(state: GatewayState) -> dict[str, bytes]:
    """Render the files of a gateway.

    Args:
        state: The desired state.

    Returns:
        Contents by file name. They name each other relatively and hold no path of any machine.
    """
    certificates = "".join(f"certificates/{quoting.word(name)}.pem\n" for name in state.certificates)
    # A name of its own for each content: HAProxy can check a new list while it runs with the former one.
    certificate_list = f"certificates-{_digest(certificates)}.list"
    scripts = (*SCRIPTS, MODELS_SCRIPT) if state.models else SCRIPTS
    beside = {
        **{name: _script(name) for name in scripts},
        **{error.file: error.response for error in ERRORS},
        BUCKETS: latency.bucket_map(),
    }
    files = {
        CONFIGURATION: _template().render(
            state=state,
            # Another version of this package may have others; the configuration tells.
            beside=_digest("".join(beside.values())),
            successor=servers.SUCCESSOR,
            certificate_list=certificate_list,
            errors=ERRORS,
            too_large=TOO_LARGE,
            gateway_headers=GATEWAY_HEADERS,
            kept_headers=_kept_headers(state),
            acme_path=ACME_PATH,
            health_file=FAILING,
            buckets_map=BUCKETS,
            duration_unit=latency.UNIT,
            previewed=_is_previewed(state),
            revision_header=REVISION_HEADER,
            model_header=MODEL_HEADER,
            models_backend=MODELS_BACKEND,
            logged=any(route.access_log for route in state.routes.values()),
            access_log_format=access_log.FORMAT,
        ),
        FAILING: NONE_FAILING,
        **beside,
        certificate_list: certificates,
    }
    for name, entries in maps(state).items():
        files[name] = "".join(f"{key} {value}\n" for key, value in entries.items())
    return {name: text.encode() for name, text in files.items()}


def maps(state: GatewayState) -> dict[str, dict[str, str]]:
    """List the maps that HAProxy looks requests up in.

    Args:
        state: The desired state.

    Returns:
        For each file, values by key.
    """
    tokens = {f"*/{token.sha256}": _until(token) for token in state.tokens.values()}
    routes: dict[str, str] = {}
    if state.models_port is not None:
        routes[f"{state.models_port}/*/"] = MODELS_BACKEND
    if state.models_host is not None:
        for listener in (str(state.base_port), *([HTTPS] if state.https_port is not None else [])):
            routes[f"{listener}/{state.models_host}/"] = MODELS_BACKEND
    for route in state.routes.values():
        listeners = [str(route.port)]
        if state.https_port is not None and route.port == state.base_port:
            listeners.append(HTTPS)
        for listener, host in itertools.product(listeners, route.hosts or ("*",)):
            key = f"{listener}/{host}{route.path_prefix.rstrip('/')}/"
            routes[key] = servers.backend(route.service)
        tokens |= {f"{route.service}/{token.sha256}": _until(token) for token in route.tokens.values()}
    models = {
        model.name: f"{servers.backend(route.service)};{model.created};{'token' if route.auth else 'open'}"
        for route, model in state.models
    }
    challenges = {f"{ACME_PATH}{token}": answer for token, answer in state.challenges.items()}
    limits = {
        servers.backend(route.service): str(route.client_max_body_size)
        for route in state.routes.values()
        if route.client_max_body_size is not None
    }
    previews = {
        f"{servers.backend(route.service)}/{route.preview.revision}": servers.preview_backend(route.service)
        for route in state.routes.values()
        if route.preview is not None
    }
    return {
        ROUTES: routes,
        TOKENS: tokens,
        CHALLENGES: challenges,
        BODY_LIMITS: limits,
        PREVIEWS: previews,
    } | ({MODELS: models} if models else {})


def loaded_maps(state: GatewayState) -> set[str]:
    """Return which of the maps the configuration makes use of, so that HAProxy has them in memory.

    Args:
        state: The desired state.

    Returns:
        Their names.
    """
    loaded = {ROUTES, BODY_LIMITS}
    if _is_previewed(state):
        loaded.add(PREVIEWS)
    if _is_previewed(state) or any(route.auth for route in state.routes.values()):
        loaded.add(TOKENS)
    if state.https_port is not None:
        loaded.add(CHALLENGES)
    if state.models:
        loaded |= {MODELS, TOKENS}
    return loaded


def _is_previewed(state: GatewayState) -> bool:
    return any(route.preview is not None for route in state.routes.values())


def _until(token: AcceptedToken) -> str:
    return str(NEVER if token.expires_at is None else int(token.expires_at.timestamp()))


def _server_timeout(route: Route) -> int | None:
    """HAProxy has one timer for the silence before an answer and within it."""
    return max(filter(None, (route.timeouts.request, route.timeouts.idle)), default=None)


def _prefix_depth(route: Route) -> int:
    """Count the names in a prefix."""
    return len(route.path_prefix.strip("/").split("/"))


def _escape(literal: str) -> str:
    return re.sub(r"([^A-Za-z0-9_])", r"\\\1", literal)


def _origins(route: Route) -> str:
    """Match the allowed origins."""
    return f"^({'|'.join(map(_origin, route.cors.allow_origins if route.cors else ()))})$"


def _origin(origin: str) -> str:
    """Match an origin; `*` stands for a whole host, for labels at its beginning, or for a port or none."""
    scheme, _, host = origin.partition("://")
    any_port = "(:[0-9]{1,5})?" if host.endswith(":*") else ""
    host = host.removesuffix(":*")
    any_name = "[a-z0-9._-]+" if host.startswith("*") else ""
    return f"{_escape(scheme)}://{any_name}{_escape(host.removeprefix('*'))}{any_port}"


def _cors_headers(route: Route) -> str:
    """List the request headers that pages may send; nothing: what they ask for.

    To a browser, `*` does not mean `Authorization`; here it does.
    """
    headers = route.cors.allow_headers if route.cors else ()
    return "" if "*" in headers else ", ".join(headers)


def _kept_headers(state: GatewayState) -> list[str]:
    """List the headers by which limits count, and which the gateway removes from requests."""
    limits = (limit for route in state.routes.values() for limit in route.rate_limits)
    headers = {limit.key.header.lower() for limit in limits if limit.key.header is not None}
    return sorted(header for header in headers if re.search(GATEWAY_HEADERS, header))


def _limits(route: Route) -> Iterator[Limit]:
    """Rate limits, the longest prefix first: it is the one that counts."""
    for index, limit in enumerate(sorted(route.rate_limits, key=lambda limit: -len(limit.prefix))):
        period = max(1, math.ceil((limit.burst + 1) / limit.rps * 1000))
        unclaimed = "!{ var(txn.limit) -m found }"
        below, decoded = (
            f"{unclaimed} {{ var(txn.{name}) -m beg {quoting.quote(limit.prefix)} }}"
            for name in ("path", "decoded")
        )
        yield Limit(
            table=f"limit:{quoting.word(route.service)}:{index}",
            condition=unclaimed if limit.prefix == "/" else f"{below} || {decoded}",
            header=limit.key.header and limit.key.header.lower(),
            requests=limit.burst + 1,
            period=period,
            expire=max(2 * period, 10_000),
            retry_after=max(1, math.ceil(1 / limit.rps)),
        )


def _headers(check: HealthCheck, route: Route) -> list[tuple[str, str]]:
    """A check's headers; applications that look at `Host` are asked for one of their own."""
    if any(name.lower() == "host" for name, _ in check.headers):
        return list(check.headers)
    return [("Host", route.hosts[0] if route.hosts else "localhost"), *check.headers]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _script(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text()


@functools.cache
def _template() -> jinja2.Template:
    # Whoever only reads what a gateway routes has no use for it.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prefect_dstack.gateways", ""),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - not HTML; every value goes through `quote`, or is a checked word
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "backend": servers.backend,
        "balance": servers.balance,
        "cors_headers": _cors_headers,
        "format_quote": quoting.format_quote,
        "headers": _headers,
        "limits": _limits,
        "milliseconds": servers.milliseconds,
        "origins": _origins,
        "prefix_depth": _prefix_depth,
        "preview_backend": servers.preview_backend,
        "quote": quoting.quote,
        "server": servers.server,
        "server_timeout": _server_timeout,
    }
    return environment.get_template("haproxy.cfg.j2")
