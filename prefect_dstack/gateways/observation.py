"""What a gateway has seen of the replicas behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from prefect_dstack.gateways import latency

__all__ = ["ReplicaHealth", "ReplicaStatistics", "ServiceLoad"]

_COUNTERS = ("requests", "client_errors", "server_errors", "connection_errors", "response_errors")


class ReplicaHealth(BaseModel):
    """What the gateway thinks of a replica."""

    model_config = ConfigDict(frozen=True)

    status: Literal["UP", "DOWN", "DRAIN"] = Field(
        description="DOWN: its checks fail. DRAIN: no new requests."
    )
    check: str = Field(description="The last check in a few words; empty if it is not checked.")
    since: float = Field(description="Seconds that it has been so.")

    @classmethod
    def of(cls, server: Mapping[str, str]) -> ReplicaHealth:
        """Read it from a line of `show stat`."""
        status: Literal["UP", "DOWN", "DRAIN"] = "DOWN"
        if server["status"].startswith(("UP", "no check")):
            status = "UP" if int(server["weight"]) else "DRAIN"
        words = filter(None, map(server.get, ("check_desc", "check_code", "last_chk")))
        return cls(status=status, check=" ".join(words), since=float(server["lastchg"] or 0))


class ReplicaStatistics(BaseModel):
    """What the gateway has seen of a replica since its last reload."""

    model_config = ConfigDict(frozen=True)

    process: int = Field(description="The process that counted; another one has begun anew.")
    requests: int = Field(description="Answers that it began.")
    client_errors: int = Field(description="Those with a status from 400 to 499.")
    server_errors: int = Field(description="Those with a status of 500 or above.")
    connection_errors: int = Field(description="Connections that failed.")
    response_errors: int = Field(description="Requests it took and never answered.")
    durations: tuple[int, ...] = Field(
        description="How many answers began after how long, in the buckets of `latency.BUCKETS`."
    )

    @classmethod
    def of(
        cls, process: int, server: Mapping[str, str], durations: Mapping[int, latency.Tally]
    ) -> ReplicaStatistics:
        """Read it from a line of `show stat` and the tallies in its backend's table, by bucket."""
        return cls(
            process=process,
            requests=sum(int(server[f"hrsp_{hundreds}xx"] or 0) for hundreds in "12345"),
            client_errors=int(server["hrsp_4xx"] or 0),
            server_errors=int(server["hrsp_5xx"] or 0),
            connection_errors=int(server["econ"] or 0),
            response_errors=int(server["eresp"] or 0),
            durations=tuple(
                durations.get(bucket, latency.Tally()).answers for bucket in range(len(latency.BUCKETS))
            ),
        )

    @property
    def error_rate(self) -> float | None:
        """The share of its requests that it failed; None without any request."""
        failed = self.connection_errors + self.response_errors
        asked = self.requests + failed
        return (self.server_errors + failed) / asked if asked else None

    @property
    def mean(self) -> float | None:
        """Mean milliseconds from the request to the beginning of the answer; None without any."""
        return latency.mean(self.durations)

    @property
    def p95(self) -> float | None:
        """Milliseconds within which 95 % of the answers began; None without any."""
        return latency.quantile(self.durations, 0.95)

    def since(self, earlier: ReplicaStatistics) -> ReplicaStatistics:
        """Return what happened after an earlier look, or after the last reload if that was later."""
        if earlier.process != self.process:
            return self
        fields = {name: max(0, getattr(self, name) - getattr(earlier, name)) for name in _COUNTERS}
        durations = tuple(
            max(0, now - then) for now, then in zip(self.durations, earlier.durations, strict=True)
        )
        return ReplicaStatistics(process=self.process, durations=durations, **fields)


class ServiceLoad(BaseModel):
    """What a service has to bear."""

    model_config = ConfigDict(frozen=True)

    process: int = Field(description="The process that counted; another one has begun anew.")
    requests: int = Field(description="Requests since it started.")
    in_flight: int = Field(description="Requests that replicas work on.")
    queued: int = Field(description="Requests that wait for a replica with room.")
    held: int = Field(description="Requests that wait for the first replica.")
