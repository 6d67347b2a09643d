"""Certificates from an ACME server, such as Let's Encrypt."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version

import requests
from acme import challenges, client, errors, messages
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.errors import DeserializationError
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from prefect_dstack.certificates.challenges import Proof, Solver
from prefect_dstack.certificates.pem import new_key, private_pem, signing_request
from prefect_dstack.errors import CertificateError
from prefect_dstack.gateways.place import Place

__all__ = ["LETS_ENCRYPT", "account_key", "order"]

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
# Seconds that an order may take, and the wait for any one answer.
ORDER_TIMEOUT = 90
ANSWER_TIMEOUT = 20

KINDS = {"http-01": challenges.HTTP01, "dns-01": challenges.DNS01}


def account_key(place: Place, url: str) -> ec.EllipticCurvePrivateKey:
    """Find the key of a gateway's account, or make one; it stays with the gateway.

    Args:
        place: Where the gateway lives.
        url: The directory of the ACME server.

    Returns:
        The key.

    Raises:
        CertificateError: If its file does not hold one.
    """
    name = f"acme/{hashlib.sha256(url.encode()).hexdigest()[:16]}.pem"
    with place.lock():
        data = place.read(name)
        if data is None:
            key = new_key()
            place.write({name: private_pem(key)})
            return key
    try:
        known = serialization.load_pem_private_key(data, None)
    except ValueError:
        known = None
    if not isinstance(known, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{place.name}: {name} holds no account key; remove it")
    return known


def order(
    url: str,
    account: ec.EllipticCurvePrivateKey,
    email: str | None,
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    solver: Solver,
) -> bytes:
    """Get a certificate.

    Args:
        url: The directory of the ACME server.
        account: The key of the account, which is made if there is none.
        email: Where the ACME server may write to.
        key: The private key of the certificate.
        hosts: The host names that it shall be for.
        solver: Proves that they are ours.

    Returns:
        The certificate and its chain, PEM.

    Raises:
        CertificateError: If the server cannot be reached, or refuses.
    """
    with _explained(url), _connected(url, account, email) as server:
        ordered = server.new_order(signing_request(key, hosts))
        answers = [
            (authorization, _challenge(authorization, solver, url))
            for authorization in ordered.authorizations
            if authorization.body.status != messages.STATUS_VALID
        ]
        proofs = [
            Proof(
                host=authorization.body.identifier.value,
                token=challenge.chall.encode("token"),
                validation=challenge.chall.validation(server.net.key),
            )
            for authorization, challenge in answers
        ]
        try:
            solver.present(proofs)
            for _, challenge in answers:
                server.answer_challenge(challenge, challenge.chall.response(server.net.key))
            # The library compares with the local time, without a zone.
            deadline = datetime.now() + timedelta(seconds=ORDER_TIMEOUT)  # noqa: DTZ005
            return str(server.poll_and_finalize(ordered, deadline).fullchain_pem).encode()
        finally:
            solver.withdraw(proofs)


@contextlib.contextmanager
def _connected(url: str, account: ec.EllipticCurvePrivateKey, email: str | None) -> Iterator[client.ClientV2]:
    network = client.ClientNetwork(
        JWKEC(key=account),
        alg=ES256,
        verify_ssl=_trusted(),  # type: ignore[arg-type]  # what it calls takes a path too
        user_agent=f"prefect-dstack/{version('prefect-dstack')}",
        timeout=ANSWER_TIMEOUT,
    )
    try:
        server = client.ClientV2(client.ClientV2.get_directory(url, network), network)
        registration = messages.NewRegistration.from_data(email=email, terms_of_service_agreed=True)
        try:
            server.new_account(registration)
        except errors.ConflictError as known:
            network.account = messages.RegistrationResource(body=messages.Registration(), uri=known.location)
        yield server
    finally:
        network.session.close()


def _trusted() -> str | bool:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        if os.environ.get(name):
            return os.environ[name]
    return True


def _challenge(
    authorization: messages.AuthorizationResource, solver: Solver, url: str
) -> messages.ChallengeBody:
    for challenge in authorization.body.challenges:
        if isinstance(challenge.chall, KINDS[solver.challenge]):
            return challenge
    raise CertificateError(
        f"the ACME server at {url} offers no {solver.challenge} for {authorization.body.identifier.value}"
    )


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except requests.RequestException as error:
        raise CertificateError(f"the ACME server at {url} cannot be reached: {_reason(error)}") from error
    except errors.ValidationError as error:
        raise CertificateError(f"the ACME server at {url} refuses: {_failed(error)}") from error
    except errors.TimeoutError as error:
        raise CertificateError(
            f"the ACME server at {url} has not decided within {ORDER_TIMEOUT} s"
        ) from error
    except (messages.Error, errors.Error, DeserializationError) as error:
        detail = error.detail if isinstance(error, messages.Error) else None
        raise CertificateError(f"the ACME server at {url} refuses: {_line(detail or error)}") from error


def _failed(error: errors.ValidationError) -> str:
    return "; ".join(
        f"{authorization.body.identifier.value}: {_line(challenge.error.detail or challenge.error)}"
        for authorization in error.failed_authzrs
        for challenge in authorization.body.challenges
        if challenge.error is not None
    )


def _reason(error: BaseException) -> str:
    """Find what the operating system said; the rest names Python's objects."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return _line(error)


def _line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
