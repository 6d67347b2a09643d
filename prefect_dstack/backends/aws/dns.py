"""The DNS records of a gateway's domain, in Route 53."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.backends.aws.clients import Aws
from prefect_dstack.backends.aws.errors import code_of
from prefect_dstack.errors import ConflictError, NotFoundError, ProvisioningError

__all__ = ["Record", "TxtRecords", "create_records", "delete_records", "zone_of"]

# Route 53 answers for the whole partition.
REGION = "us-east-1"
TTL = 60
# Seconds until all name servers of a zone answer alike, at most, and between two looks.
SYNC_TIMEOUT = 120.0
SYNC_PAUSE = 2.0


class Record(BaseModel):
    """One A record."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="For example `*.example.com`.")
    address: str = Field(description="What it points to.")
    created: bool = Field(description="Whether it is there by our doing; else somebody must create it.")

    def __str__(self) -> str:
        return f"{self.name}. {TTL} IN A {self.address}"


def create_records(aws: Aws, domain: str, address: str) -> tuple[Record, ...]:
    """Point a domain and everything directly below it to an address, where its zone is in the account.

    Args:
        aws: The account.
        domain: For example `example.com`.
        address: Of the gateway.

    Returns:
        The records; not `created` if the account has no zone for them.

    Raises:
        ConflictError: If one points elsewhere.
        ProvisioningError: With AWS's words.
    """
    names = (domain, f"*.{domain}")
    zone = zone_of(_zones(aws), domain)
    if zone is None:
        return tuple(Record(name=name, address=address, created=False) for name in names)
    # All are looked at before the first is written.
    for name in names:
        for record in _existing(aws, zone, name):
            if record["Type"] not in ("A", "CNAME", "AAAA"):
                continue
            values = [value["Value"] for value in record.get("ResourceRecords", ())]
            if record["Type"] != "A" or values != [address]:
                target = ", ".join(values) or record.get("AliasTarget", {}).get("DNSName", "an alias")
                raise ConflictError(
                    f"aws: {name} has a record {record['Type']} to {target} already: remove it, or choose "
                    "another domain"
                )
    _change(aws, zone, "UPSERT", [_record(name, address) for name in names])
    return tuple(Record(name=name, address=address, created=True) for name in names)


def delete_records(aws: Aws, domain: str, address: str) -> None:
    """Remove what `create_records` created; what points elsewhere stays.

    Args:
        aws: The account.
        domain: For example `example.com`.
        address: Of the gateway.

    Raises:
        ProvisioningError: With AWS's words.
    """
    zone = zone_of(_zones(aws), domain)
    if zone is None:
        return
    for name in (domain, f"*.{domain}"):
        for record in _existing(aws, zone, name):
            if record["Type"] == "A" and [v["Value"] for v in record.get("ResourceRecords", ())] == [address]:
                _change(aws, zone, "DELETE", [record])


class TxtRecords:
    """The TXT records of the account's zones; what proves to an ACME server that a domain is ours.

    Args:
        aws: The account.
    """

    def __init__(self, aws: Aws) -> None:
        self._aws = aws

    def add_txt(self, name: str, values: Sequence[str]) -> None:
        """Set the TXT records of a name, and wait until every name server answers with them.

        Args:
            name: For example `_acme-challenge.example.com`.
            values: One for each record.

        Raises:
            NotFoundError: If the account has no zone for it.
            ProvisioningError: With AWS's words, or if it takes too long.
        """
        zone = zone_of(_zones(self._aws), name)
        if zone is None:
            raise NotFoundError(f"aws: no public zone of Route 53 is one for {name}")
        record = {
            "Name": name,
            "Type": "TXT",
            "TTL": TTL,
            "ResourceRecords": [_text(value) for value in values],
        }
        change = _change(self._aws, zone, "UPSERT", [record])
        deadline = time.monotonic() + SYNC_TIMEOUT
        while change["Status"] != "INSYNC":
            if time.monotonic() > deadline:
                raise ProvisioningError(f"aws: {name} is not on all name servers after {SYNC_TIMEOUT:.0f} s")
            self._aws.pause(SYNC_PAUSE)
            change = self._aws.call(REGION, "route53", "get_change", Id=change["Id"])["ChangeInfo"]

    def remove_txt(self, name: str) -> None:
        """Remove the TXT records of a name; no error if there are none.

        Args:
            name: For example `_acme-challenge.example.com`.

        Raises:
            ProvisioningError: With AWS's words.
        """
        zone = zone_of(_zones(self._aws), name)
        found = () if zone is None else _existing(self._aws, zone, name)
        for record in found:
            if zone is not None and record["Type"] == "TXT":
                _change(self._aws, zone, "DELETE", [record])


def zone_of(zones: Iterable[Mapping[str, Any]], domain: str) -> str | None:
    """Find the public zone that a domain belongs to: the one with the longest name that it ends in.

    Args:
        zones: As Route 53 lists them.
        domain: For example `a.example.com`.

    Returns:
        Its id, or None.
    """
    fitting = [
        zone
        for zone in zones
        if not zone.get("Config", {}).get("PrivateZone")
        and f".{domain.lower().rstrip('.')}.".endswith(f".{zone['Name'].lower().rstrip('.')}.")
    ]
    if not fitting:
        return None
    return str(max(fitting, key=lambda zone: len(zone["Name"]))["Id"])


def _zones(aws: Aws) -> Iterator[Mapping[str, Any]]:
    parameters: dict[str, Any] = {}
    while True:
        page = aws.call(REGION, "route53", "list_hosted_zones", **parameters)
        yield from page["HostedZones"]
        if not page.get("IsTruncated"):
            return
        parameters["Marker"] = page["NextMarker"]


def _existing(aws: Aws, zone: str, name: str) -> list[dict[str, Any]]:
    # Names come back with octal escapes and a final dot.
    wanted = name.lower().replace("*", "\\052") + "."
    page = aws.call(
        REGION,
        "route53",
        "list_resource_record_sets",
        HostedZoneId=zone,
        StartRecordName=name,
        MaxItems="20",
    )
    return [
        record
        for record in page["ResourceRecordSets"]
        if record["Name"].lower().replace("*", "\\052").rstrip(".") + "." == wanted
    ]


def _record(name: str, address: str) -> dict[str, Any]:
    return {"Name": name, "Type": "A", "TTL": TTL, "ResourceRecords": [{"Value": address}]}


def _text(value: str) -> dict[str, str]:
    return {"Value": f'"{value}"'}


def _change(aws: Aws, zone: str, action: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    changes = [{"Action": action, "ResourceRecordSet": record} for record in records]
    try:
        answer = aws.call(
            REGION,
            "route53",
            "change_resource_record_sets",
            HostedZoneId=zone,
            ChangeBatch={"Comment": "prefect-dstack", "Changes": changes},
        )
        return dict(answer["ChangeInfo"])
    except ProvisioningError as error:
        # What was to be deleted is gone: an earlier answer was lost.
        if action != "DELETE" or error.__cause__ is None or code_of(error.__cause__) != "InvalidChangeBatch":
            raise
        return {}
