"""What a controller makes of the loads that it sees, one look after another."""

from __future__ import annotations

from typing import Any, cast

from prefect_dstack.domain.record import DesiredReplicas, ServiceRecord, now
from prefect_dstack.gateways.look import GatewayLook
from prefect_dstack.resident.scaling import ScalingChange
from prefect_dstack.resident.watching import ServiceWatch
from tests.domain.test_record import revision

SCALING = {"metric": "rps", "target": 5, "scale_up_delay": "5s", "scale_down_delay": "20s"}


class Watching:
    """A service with three replicas, at which a controller looks once a second."""

    def __init__(self) -> None:
        self.now, self.requests = 1_000.0, 0.0
        keys = {"port": 8000, "commands": ["serve"], "replicas": "1..3", "scaling": SCALING}
        configuration = {"type": "service", **keys}
        self.record = ServiceRecord(
            name="hello",
            salt="salt",
            active=1,
            revisions=[revision(1, configuration=configuration)],
            desired=DesiredReplicas(replicas=3, set_by="configuration", set_at=now()),
        )
        self.watch = ServiceWatch(self.record, lambda: self.now)

    def pass_time(self, seconds: int, rate: float, *, looking: bool = True) -> ScalingChange | None:
        """Let requests come for some time, and return what is to change in the end."""
        for _ in range(seconds):
            self.now += 1
            self.requests += rate
            if looking:
                line = {"req_tot": str(round(self.requests)), "scur": "0", "qcur": "0"}
                seen = GatewayLook(1, {"hello": line}, {}, {}, {})
                self.watch.look(seen, cast("Any", None), cast("Any", None))
        return self.watch.change()


def test_what_bears_little_for_the_whole_delay_shrinks() -> None:
    watching = Watching()

    assert watching.pass_time(15, rate=3) is None
    change = watching.pass_time(10, rate=3)

    assert change is not None
    assert str(change) == "hello 3 → 1: 3 requests/s, target 5"


def test_what_was_seen_before_a_time_without_looks_does_not_count() -> None:
    watching = Watching()
    watching.pass_time(15, rate=0)

    # Pinned, or deployed.
    watching.pass_time(30, rate=14, looking=False)

    assert watching.pass_time(1, rate=14) is None
    assert watching.pass_time(30, rate=14) is None
    assert watching.pass_time(15, rate=0) is None
    change = watching.pass_time(25, rate=0)
    assert change is not None
    assert (change.before, change.replicas) == (3, 1)
