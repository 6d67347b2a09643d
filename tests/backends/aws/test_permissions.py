from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefect_dstack.backends.aws import AwsSettings, check_permissions, least_policy
from tests.testbed.ec2.account import Account

pytestmark = pytest.mark.integration


def test_all_actions_are_tried_and_nothing_is_done(aws: Account, home: Path) -> None:
    results = check_permissions(aws.backend(home).account.aws)
    # moto has no dry run of some, and does not say whether it would do what it was asked for.
    denied = [result for result in results if result.outcome == "denied"]
    assert denied == []
    # AWS tells only those who truly create them whether these are allowed.
    untried = {"ec2:CreateTags", "iam:CreateServiceLinkedRole"}
    assert {result.action for result in results} == _allowed() - untried
    assert aws.leftovers() == {}


@pytest.mark.parametrize("action", ["RunInstances", "DescribeInstances", "GetProducts"])
def test_what_is_not_allowed_is_told_in_awss_words(aws: Account, home: Path, action: str) -> None:
    aws.fault(action, code="UnauthorizedOperation", message="You are not authorized", status=403)
    denied = [r for r in check_permissions(aws.backend(home).account.aws) if r.outcome == "denied"]
    assert [result.action.partition(":")[2] for result in denied] == [action]
    assert denied[0].detail == "UnauthorizedOperation: You are not authorized"


def test_wrong_credentials_are_one_result(aws: Account, home: Path) -> None:
    (only,) = check_permissions(aws.backend(home, key_id="AKIAWRONG").account.aws)
    assert (only.action, only.outcome) == ("sts:GetCallerIdentity", "denied")


def test_the_policy_fits_into_iam_and_guards_what_is_not_ours() -> None:
    policy = least_policy(AwsSettings(regions=("eu-west-1",), image="/my/image"))
    # A managed policy holds 6,144 characters without blanks.
    assert len(json.dumps(policy, separators=(",", ":"))) < 6144
    by_name = {statement["Sid"]: statement for statement in policy["Statement"]}
    assert "ec2:TerminateInstances" in by_name["ChangeWhatIsOurs"]["Action"]
    for name in ("CreateWithOurTags", "ChangeWhatIsOurs"):
        assert "prefect-dstack:role" in json.dumps(by_name[name]["Condition"])
    assert "arn:aws:ssm:*::parameter/my/image" in by_name["FindImages"]["Resource"]
    assert not any("PassRole" in json.dumps(statement) for statement in policy["Statement"])
    china = json.dumps(least_policy(AwsSettings(regions=("cn-north-1",))))
    assert "arn:aws:" not in china
    assert "arn:aws-cn:" in china
    with_profile = least_policy(AwsSettings(regions=("eu-west-1",), instance_profile="app"))
    assert any(statement["Action"] == "iam:PassRole" for statement in with_profile["Statement"])


def test_the_policy_allows_every_action_that_is_called(aws: Account) -> None:
    sources = Path(__file__).parents[3] / "prefect_dstack" / "backends" / "aws"
    text = "".join(path.read_text() for path in sources.glob("*.py"))
    called = {
        f"{service}:{api}"
        for service in ("ec2", "pricing", "route53", "ssm", "sts")
        for name, api in aws.client(service).meta.method_to_api_mapping.items()
        if f'"{name}"' in text
    }
    assert called >= {"ec2:RunInstances", "route53:GetChange", "ssm:GetParameter"}
    assert called <= _allowed()


def _allowed() -> set[str]:
    allowed: set[str] = set()
    for statement in least_policy(AwsSettings(regions=("eu-west-1",)))["Statement"]:
        actions = statement["Action"]
        allowed |= {actions} if isinstance(actions, str) else set(actions)
    return allowed
