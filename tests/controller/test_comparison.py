"""A canary is compared on what the gateway counts, over reloads and short silences."""

from __future__ import annotations

from typing import cast

import pytest

from prefect_dstack.configurations import Canary
from prefect_dstack.controller import comparison
from prefect_dstack.controller.comparison import Comparison
from prefect_dstack.errors import GatewayError
from prefect_dstack.gateways import latency
from prefect_dstack.gateways.observation import ReplicaHealth, ReplicaStatistics
from prefect_dstack.infrastructure.gateways import ManagedGateway

UP = ReplicaHealth(status="UP", check="", since=1)
DOWN = ReplicaHealth(status="DOWN", check="HTTP status 500", since=1)


class Counters:
    """A gateway's counters of two replicas; implements what `Comparison` asks."""

    def __init__(self) -> None:
        self.process = 1
        self.requests = {"hello-1-0": 0, "hello-2-0": 0}
        self.failed = dict.fromkeys(self.requests, 0)
        self.health = dict.fromkeys(self.requests, UP)
        self.silent = False

    @property
    def control(self) -> Counters:
        return self

    def statistics(self, service: str) -> dict[str, ReplicaStatistics]:
        if self.silent:
            raise GatewayError("local: no answer")
        return {name: self._counted(name) for name in self.requests}

    def replica_health(self, service: str) -> dict[str, ReplicaHealth]:
        return self.health

    def restart(self) -> None:
        """Begin to count anew, as HAProxy does after a reload."""
        self.process += 1
        for name in self.requests:
            self.requests[name] = self.failed[name] = 0

    def _counted(self, name: str) -> ReplicaStatistics:
        return ReplicaStatistics(
            process=self.process,
            requests=self.requests[name],
            client_errors=0,
            server_errors=self.failed[name],
            connection_errors=0,
            response_errors=0,
            durations=(0,) * len(latency.BUCKETS),
        )


@pytest.fixture
def counters() -> Counters:
    return Counters()


def compare(counters: Counters) -> Comparison:
    return Comparison(cast("ManagedGateway", counters), "hello", old=1, new=2)


def test_only_what_happens_from_then_on_counts(counters: Counters) -> None:
    counters.requests["hello-1-0"] = 1000
    comparison = compare(counters)
    counters.requests["hello-1-0"] += 90
    counters.requests["hello-2-0"] += 10

    old, new = comparison.look()

    assert (old.requests, new.requests) == (90, 10)


def test_counts_go_on_over_a_reload(counters: Counters) -> None:
    comparison = compare(counters)
    counters.requests["hello-2-0"] += 10
    comparison.look()
    counters.restart()
    counters.requests["hello-2-0"] += 7
    counters.failed["hello-2-0"] += 2

    _, new = comparison.look()

    assert (new.requests, new.failed) == (17, 2)


def test_a_short_silence_changes_nothing(counters: Counters) -> None:
    comparison = compare(counters)
    counters.requests["hello-2-0"] += 10
    comparison.look()
    counters.silent = True

    _, new = comparison.look()

    assert new.requests == 10


def test_a_long_silence_is_an_error(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = compare(counters)
    counters.silent = True
    monkeypatch.setattr(comparison, "SILENCE", 0.0)

    with pytest.raises(GatewayError):
        compared.look()


def test_a_canary_that_the_gateway_cannot_use_is_rejected(counters: Counters) -> None:
    comparison = compare(counters)
    counters.health["hello-2-0"] = DOWN

    verdict = comparison.judge(Canary(), over=False)

    assert (verdict.decision, "HTTP status 500" in verdict.reason) == ("reject", True)


def test_a_canary_that_fails_requests_is_rejected_before_its_time_is_up(counters: Counters) -> None:
    comparison = compare(counters)
    counters.requests.update({"hello-1-0": 900, "hello-2-0": 100})
    counters.failed["hello-2-0"] = 50

    assert comparison.judge(Canary(), over=False).decision == "reject"


def test_one_that_does_no_worse_is_promoted_when_its_time_is_up(counters: Counters) -> None:
    comparison = compare(counters)
    counters.requests.update({"hello-1-0": 900, "hello-2-0": 100})

    assert comparison.judge(Canary(), over=False).decision == "wait"
    assert comparison.judge(Canary(), over=True).decision == "promote"
