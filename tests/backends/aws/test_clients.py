from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from prefect_dstack.backends.aws import AwsSettings
from prefect_dstack.backends.aws.clients import ATTEMPTS, CLIENT_AGE, LONGEST_PAUSE, Aws, pause_before
from prefect_dstack.errors import CapacityError, ProvisioningError


class Answers:
    """A session whose clients raise and return what they are told, in order."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sessions = 0
        self.retries: Any = None

    def __call__(self, region: str) -> Answers:
        self.sessions += 1
        return self

    def client(self, service: str, config: Any, **_: Any) -> Answers:
        self.retries = config.retries
        return self

    def describe_things(self, **_: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def refusal(code: str, status: int = 400) -> ClientError:
    response = {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "DescribeThings")


def aws(answers: Answers, paused: list[float]) -> Aws:
    return Aws(AwsSettings(regions=("eu-west-1",)), answers, paused.append)


def test_throttling_is_waited_for_longer_each_time_and_told() -> None:
    answers = Answers(*[refusal("RequestLimitExceeded", 503)] * 5, {"Things": []})
    paused: list[float] = []
    told: list[str] = []
    assert aws(answers, paused).call("r", "ec2", "describe_things", told.append) == {"Things": []}
    assert len(paused) == len(told) == 5
    assert paused[4] > paused[0]
    assert "DescribeThings: RequestLimitExceeded, again in" in told[0]


def test_patience_ends() -> None:
    answers = Answers(*[refusal("RequestLimitExceeded", 503)] * 50)
    paused: list[float] = []
    with pytest.raises(ProvisioningError, match="RequestLimitExceeded: words"):
        aws(answers, paused).call("r", "ec2", "describe_things")
    assert len(paused) == ATTEMPTS - 1
    assert max(paused) <= LONGEST_PAUSE
    assert sum(paused) < 120


def test_a_capacity_error_comes_at_once_although_it_is_a_500() -> None:
    answers = Answers(refusal("InsufficientInstanceCapacity", 500), {"Things": []})
    paused: list[float] = []
    with pytest.raises(CapacityError):
        aws(answers, paused).call("r", "ec2", "describe_things")
    assert paused == []
    assert answers.retries == {"mode": "standard", "total_max_attempts": 1}


def test_once_does_not_repeat_what_may_have_been_done() -> None:
    answers = Answers(refusal("InternalError", 500), {"Things": []})
    with pytest.raises(ClientError):
        aws(answers, []).once("r", "ec2", "describe_things")


def test_expired_credentials_are_asked_for_anew_once() -> None:
    answers = Answers(refusal("ExpiredToken"), {"Things": []})
    assert aws(answers, []).call("r", "ec2", "describe_things") == {"Things": []}
    assert answers.sessions == 2
    answers = Answers(refusal("ExpiredToken"), refusal("ExpiredToken"))
    with pytest.raises(ProvisioningError, match="check the AWS credentials"):
        aws(answers, []).call("r", "ec2", "describe_things")


def test_clients_are_kept_for_a_while_and_then_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("prefect_dstack.backends.aws.clients.time.monotonic", lambda: now)
    answers = Answers({}, {}, {})
    api = aws(answers, [])
    api.call("r", "ec2", "describe_things")
    api.call("r", "ec2", "describe_things")
    assert answers.sessions == 1
    now += CLIENT_AGE + 1
    api.call("r", "ec2", "describe_things")
    assert answers.sessions == 2


def test_pages_are_followed_to_the_last() -> None:
    first, second, third = {"Id": "1"}, {"Id": "2"}, {"Id": "3"}
    answers = Answers({"Things": [first, second], "NextToken": "x"}, {"NextToken": "y"}, {"Things": [third]})
    assert list(aws(answers, []).pages("r", "ec2", "describe_things", "Things")) == [first, second, third]


def test_two_who_wait_do_not_wait_equally_long() -> None:
    assert len({pause_before(5) for _ in range(20)}) > 1
