"""TXT records in Route 53, by which a domain is proven to be ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prefect_dstack.backends.aws import AwsBackend
from prefect_dstack.backends.aws.dns import TxtRecords
from prefect_dstack.errors import NotFoundError, ProvisioningError
from tests.testbed.ec2.account import Account

NAME = "_acme-challenge.example.com"


def zone(aws: Account, name: str, **options: Any) -> str:
    made = aws.client("route53").create_hosted_zone(Name=name, CallerReference=name, **options)
    return str(made["HostedZone"]["Id"])


def txt(aws: Account, zone_id: str) -> dict[str, list[str]]:
    listed = aws.client("route53").list_resource_record_sets(HostedZoneId=zone_id)["ResourceRecordSets"]
    return {it["Name"]: [v["Value"] for v in it["ResourceRecords"]] for it in listed if it["Type"] == "TXT"}


def test_are_set_together_replaced_and_removed(aws: Account, backend: Callable[..., AwsBackend]) -> None:
    zone_id = zone(aws, "example.com")
    records = TxtRecords(backend().account.aws)

    records.add_txt(NAME, ["one", "two"])
    assert txt(aws, zone_id) == {f"{NAME}.": ['"one"', '"two"']}
    records.add_txt(NAME, ["three"])
    assert txt(aws, zone_id) == {f"{NAME}.": ['"three"']}
    records.remove_txt(NAME)
    assert txt(aws, zone_id) == {}
    records.remove_txt(NAME)


def test_need_a_zone_of_the_account(aws: Account, backend: Callable[..., AwsBackend]) -> None:
    zone(aws, "example.net")
    records = TxtRecords(backend().account.aws)

    with pytest.raises(NotFoundError, match=f"no public zone of Route 53 is one for {NAME}"):
        records.add_txt(NAME, ["one"])
    records.remove_txt(NAME)


def test_are_waited_for_but_not_for_ever(
    aws: Account, backend: Callable[..., AwsBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(aws, "example.com")
    account = backend().account.aws
    pauses: list[float] = []
    monkeypatch.setattr(account, "pause", pauses.append)
    real = account.call

    def slow(region: str, service: str, operation: str, *arguments: Any, **parameters: Any) -> dict[str, Any]:
        if operation == "get_change":
            return {"ChangeInfo": {"Id": "C1", "Status": "INSYNC" if len(pauses) > 2 else "PENDING"}}
        answer = real(region, service, operation, *arguments, **parameters)
        if operation == "change_resource_record_sets":
            answer["ChangeInfo"]["Status"] = "PENDING"
        return answer

    monkeypatch.setattr(account, "call", slow)
    TxtRecords(account).add_txt(NAME, ["one"])
    assert len(pauses) == 3

    pauses.clear()
    monkeypatch.setattr("prefect_dstack.backends.aws.dns.SYNC_TIMEOUT", -1.0)
    with pytest.raises(ProvisioningError, match="is not on all name servers after"):
        TxtRecords(account).add_txt(NAME, ["one"])
