"""The certificate authority of this Prefect API, for gateways with self-signed certificates."""

from __future__ import annotations

from prefect_dstack.blocks import DstackAuthority
from prefect_dstack.certificates.authority import Authority, new_authority
from prefect_dstack.domain.record import now
from prefect_dstack.store import documents

__all__ = ["authority"]

NAME = "default"


def authority() -> Authority:
    """Return the certificate authority of this Prefect API; the first call makes it.

    Returns:
        The authority.
    """
    known = documents.load(DstackAuthority, NAME)
    if known is not None:
        return Authority(certificate=known.certificate, key=known.key)
    made = new_authority(now())
    mine = documents.create(DstackAuthority(certificate=made.certificate, key=made.key), NAME)
    # Somebody else may have made one at the same time; the first counts.
    return made if mine else authority()
