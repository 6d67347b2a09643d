"""How a gateway proves to an ACME server that a host name is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prefect_dstack.gateways.gateway import Gateway
from prefect_dstack.gateways.state import GatewayState

__all__ = ["DnsRecords", "DnsSolver", "HttpSolver", "Proof", "Solver"]


@dataclass(frozen=True)
class Proof:
    """What must be found by the ACME server.

    Attributes:
        host: The host name, without `*.`.
        token: The last part of the path, of HTTP-01.
        validation: What must be found there.
    """

    host: str
    token: str
    validation: str


class Solver(Protocol):
    """Puts proofs where the ACME server looks for them."""

    @property
    def challenge(self) -> Literal["http-01", "dns-01"]:
        """The kind of challenge."""
        ...

    def present(self, proofs: Sequence[Proof]) -> None:
        """Publish proofs; the ACME server finds them when this returns."""
        ...

    def withdraw(self, proofs: Sequence[Proof]) -> None:
        """Withdraw the proofs."""
        ...


class HttpSolver:
    """HTTP-01: the gateway itself answers, from a map that changes without a reload.

    Args:
        gateway: The gateway; it listens on the port that the ACME server asks, 80.
    """

    challenge: Literal["http-01"] = "http-01"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def present(self, proofs: Sequence[Proof]) -> None:
        """Implement `Solver.present`."""

        def presented(state: GatewayState) -> GatewayState:
            for proof in proofs:
                state = state.with_challenge(proof.token, proof.validation)
            return state

        self._gateway.change(presented)

    def withdraw(self, proofs: Sequence[Proof]) -> None:
        """Implement `Solver.withdraw`."""

        def withdrawn(state: GatewayState) -> GatewayState:
            for proof in proofs:
                state = state.without_challenge(proof.token)
            return state

        self._gateway.change(withdrawn)


class DnsRecords(Protocol):
    """The TXT records of a DNS zone."""

    def add_txt(self, name: str, values: Sequence[str]) -> None:
        """Set the TXT records of a name; all name servers answer with them when this returns."""
        ...

    def remove_txt(self, name: str) -> None:
        """Remove the TXT records of a name; no error if there are none."""
        ...


class DnsSolver:
    """DNS-01: TXT records, the only way to a wildcard.

    Args:
        records: Where they are written.
    """

    challenge: Literal["dns-01"] = "dns-01"

    def __init__(self, records: DnsRecords) -> None:
        self._records = records

    def present(self, proofs: Sequence[Proof]) -> None:
        """Implement `Solver.present`."""
        # `example.com` and `*.example.com` are proven at one name.
        for name in dict.fromkeys(_name(proof) for proof in proofs):
            self._records.add_txt(name, [proof.validation for proof in proofs if _name(proof) == name])

    def withdraw(self, proofs: Sequence[Proof]) -> None:
        """Implement `Solver.withdraw`."""
        for name in dict.fromkeys(_name(proof) for proof in proofs):
            self._records.remove_txt(name)


def _name(proof: Proof) -> str:
    return f"_acme-challenge.{proof.host}"
