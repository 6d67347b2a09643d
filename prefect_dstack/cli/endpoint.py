"""`url`, `open`, `call`: the endpoint of a service, for scripts, people and a first try."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefect_dstack.cli.options import Json, Name
from prefect_dstack.cli.output import console_error, err, out, print_json, reading
from prefect_dstack.errors import ConflictError, UserError

if TYPE_CHECKING:
    from prefect_dstack.domain.record import Endpoint, ServiceRecord

__all__ = ["call", "open_", "url"]

TOKEN_LIFE = "5m"  # noqa: S105 - how long one is good for
REVISION_HEADER = "x-dstack-revision"


def url(name: Name, json: Json = False) -> None:
    """Print the URL of a service."""
    with reading():
        endpoint = _endpoint(name)[1]
    if json:
        print_json(endpoint.model_dump(mode="json"))
    else:
        print(endpoint.url)  # noqa: T201


def open_(name: Name) -> None:
    """Open a service in the browser."""
    import webbrowser

    with reading():
        endpoint = _endpoint(name)[1]
    if webbrowser.open(endpoint.url):
        out.print(endpoint.url, markup=False)
    else:
        raise UserError(f"no browser could be opened; the URL is {endpoint.url}")


def call(
    name: Name,
    path: Annotated[str, typer.Argument(help="The path, with a query if there is one.")] = "/",
    method: Annotated[
        str | None, typer.Option("--request", "-X", help="The method; default: GET, with --data POST.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="The body; @FILE sends a file, @- what comes from standard input."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header, 'Name: value'; may be given again.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="PREFECT_DSTACK_TOKEN",
            help="The token to send; default: one of five minutes is made if the service needs one.",
        ),
    ] = None,
    revision: Annotated[
        int | None,
        typer.Option(min=1, help="Ask this revision, which is evaluated or waits for approval."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds to wait for an answer; default: any time.")
    ] = None,
) -> None:
    """Send a request to a service and print the answer; exit code 2 for 4xx, 1 for 5xx."""
    headers = _headers(header or [])
    body = _body(data)
    if body is not None and "content-type" not in headers:
        headers["content-type"] = "application/json" if _is_json(body) else "application/octet-stream"
    if not path.startswith("/"):
        path = f"/{path}"
    with reading():
        record, endpoint = _endpoint(name)
        address, needs_token, authority = _way_to(record, revision)
    if revision is not None and revision != record.active:
        headers[REVISION_HEADER] = str(revision)
    chosen = method or ("GET" if body is None else "POST")
    with _token(name, token, needed=needs_token and "authorization" not in headers) as value:
        if value:
            headers["authorization"] = f"Bearer {value}"
        status = _exchange(endpoint.url, path, chosen, headers, body, address, authority, timeout)
    if status.code >= 400:
        console_error(f"{endpoint.url}{path}: {status.code} {status.reason}".rstrip())
        raise typer.Exit(1 if status.code >= 500 else 2)


class _Status:
    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason


def _endpoint(name: str) -> tuple[ServiceRecord, Endpoint]:
    from prefect_dstack.store.records import load_record

    record = load_record(name)
    if record.endpoint is None and record.approval is not None:
        waiting = record.approval
        raise ConflictError(
            f"{name}: does not serve yet; {name}@{waiting.revision} waits for approval, and answers at "
            f"{waiting.private_url} on {waiting.machine}"
        )
    if record.endpoint is None:
        raise ConflictError(f"{name}: does not serve; prefect-dstack apply deploys it")
    return record, record.endpoint


def _way_to(record: ServiceRecord, revision: int | None) -> tuple[str, bool, str]:
    """Return the address of a gateway, whether it asks for a token, and what certificate to trust.

    Args:
        record: The service.
        revision: The revision that is asked; None: the one that serves.

    Raises:
        ConflictError: If the revision cannot be asked.
    """
    from prefect_dstack.configurations import Certificate
    from prefect_dstack.store.sources import resolve_infrastructure

    infrastructure = resolve_infrastructure()
    gateway = infrastructure.gateway(record.gateway)
    state = gateway.state()
    route = None if state is None else state.routes.get(record.name)
    certificate = gateway.configuration.certificate
    own = isinstance(certificate, Certificate) and certificate.type == "self-signed"
    trusted = infrastructure.sources.authority().certificate if own else ""
    previewed = revision is not None and revision != record.active
    known = None if route is None or route.preview is None else route.preview.revision
    if previewed and known != revision:
        others = f"; call {record.name}@{known}, or what serves" if known else ""
        raise ConflictError(
            f"{record.name}@{revision}: cannot be called: it neither serves nor waits for approval{others}"
        )
    return gateway.address, previewed or (route is not None and route.auth), trusted


@contextlib.contextmanager
def _token(name: str, given: str | None, *, needed: bool) -> Iterator[str | None]:
    """Yield the token to send; one that had to be made is taken away afterwards."""
    if given or not needed:
        yield given
        return
    from prefect_dstack.services.tokens import create_token, revoke_token

    token = create_token(name, expires=TOKEN_LIFE)
    try:
        yield token.value.get_secret_value()
    finally:
        try:
            revoke_token(token.id)
        except Exception as error:  # noqa: BLE001 - the answer was had, and the token ends by itself
            err.print(
                f"the token made for this call ends in {TOKEN_LIFE}: {error}", style="dim", markup=False
            )


def _headers(written: list[str]) -> dict[str, str]:
    headers = {}
    for line in written:
        name, separator, value = line.partition(":")
        if not separator or not name.strip() or not line.isprintable() or " " in name.strip():
            raise UserError(f"--header {line!r}: write 'Name: value'")
        headers[name.strip().lower()] = value.strip()
    return headers


def _body(data: str | None) -> bytes | None:
    if data is None:
        return None
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise UserError(f"--data {data}: cannot be read: {error.strerror}") from error
    return data.encode(errors="surrogateescape")


def _is_json(body: bytes) -> bool:
    import json

    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def _exchange(
    url: str,
    path: str,
    method: str,
    headers: dict[str, str],
    body: bytes | None,
    address: str,
    authority: str,
    timeout: float | None,
) -> _Status:
    """Send the request to the gateway's address, as its name may not resolve here, and print the answer."""
    import ssl

    import httpx

    from prefect_dstack.errors import GatewayError

    context = ssl.create_default_context()
    if authority:
        context.load_verify_locations(cadata=authority)
    named = httpx.URL(url)
    headers.setdefault("host", named.netloc.decode())
    limits = httpx.Timeout(timeout, connect=10 if timeout is None else timeout)
    last = b""
    try:
        with (
            httpx.Client(verify=context, timeout=limits, trust_env=False) as client,
            client.stream(
                method,
                httpx.URL(f"{url}{path}").copy_with(host=address),
                headers=headers,
                content=body,
                extensions={"sni_hostname": named.host},
            ) as response,
        ):
            for part in response.iter_bytes():
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
                last = part or last
            status = _Status(response.status_code, response.reason_phrase)
    except httpx.TimeoutException as error:
        raise GatewayError(f"{url}{path}: no answer in time ({type(error).__name__})") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise GatewayError(f"{url}{path}: {error or type(error).__name__}") from error
    if sys.stdout.isatty() and last and not last.endswith(b"\n"):
        err.print()
    return status
