"""What must hold once all is quiet: whatever is not as the records say, in words."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import outside
from tests.chaos.place import Place, Wanted
from tests.home import Home

ASKED = 6


@dataclass
class Known:
    """What somebody knows of the services who has asked for all that happened.

    Attributes:
        ports: Where each service answers.
        records: What `inspect` says of each; None: there is no such service.
        codes: The code of a service's revision, as far as its deployment told.
        accepted: Tokens that were created.
        revoked: Tokens that were revoked.
        controller: Whether a controller is to watch.
    """

    ports: Mapping[str, int]
    records: Mapping[str, Any]
    codes: Mapping[tuple[str, int], int]
    accepted: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    controller: bool = False


def broken(home: Home, place: Place, known: Known) -> list[str]:
    """Compare what there is with what is wanted.

    Args:
        home: Where commands run.
        place: Where the services are.
        known: What is wanted.

    Returns:
        A line for each difference; none if all is well.
    """
    serving = {name: it for name, it in known.records.items() if it and it["revision"] is not None}
    active = {name: _active(record) for name, record in serving.items()}
    wanted = Wanted(
        replicas={
            name: {
                f"{name}-{active[name]['replicas_of']}-{number}"
                for number in record["desired"]["preferred"] or range(record["wanted"])
            }
            for name, record in serving.items()
        },
        ports={name: known.ports[name] for name in serving},
        controller=known.controller,
    )
    checks = (
        _records(known.records),
        _files(home, known.records),
        place.differences(wanted),
        _answers(place.address, known, active),
    )
    return [line for lines in checks for line in lines]


def _active(record: Any) -> Any:
    return next(it for it in record["revisions"] if it["number"] == record["revision"])


def _records(records: Mapping[str, Any]) -> Iterator[str]:
    for name, record in records.items():
        if record is None:
            continue
        if record["deploying"] is not None:
            yield f"{name}: seems to be deployed: {record['deploying']}"
        outcomes = Counter(it["outcome"] for it in record["revisions"])
        if outcomes["deploying"] or outcomes["active"] != (record["revision"] is not None):
            yield f"{name}: outcomes of its revisions are {dict(outcomes)}"
        if record["revision"] is None:
            continue  # that it failed is a problem that stays
        if record["problems"]:
            yield f"{name}: has problems: {record['problems']}"
        if record["serving"] != record["wanted"]:
            yield f"{name}: {record['serving']} of {record['wanted']} replicas serve"


def _files(home: Home, records: Mapping[str, Any]) -> Iterator[str]:
    kept = {it["bundle"] for record in records.values() if record for it in record["revisions"]}
    if (bundles := outside.bundles(home)) != kept - {""}:
        yield f"bundles without a revision: {sorted(bundles - kept)}; missing: {sorted(kept - bundles)}"
    yield from (f"unfinished: {name}" for name in outside.unfinished_files(home))


def _answers(address: str, known: Known, active: Mapping[str, Any]) -> Iterator[str]:
    for name, revision in active.items():
        token = known.accepted[0] if known.accepted else ""
        expected = (200, revision["replicas_of"], known.codes.get((name, revision["number"])))
        for _ in range(ASKED):
            status, who, code = ask(address, known.ports[name], token)
            if (status, who, code if expected[2] is not None else None) != expected:
                yield f"{name} answers {(status, who, code)}, not {expected}"
                break
        if revision["configuration"]["auth"]["enabled"]:
            yield from _tokens(address, known, name)


def _tokens(address: str, known: Known, service: str) -> Iterator[str]:
    for tokens, expected in ((known.accepted, 200), (known.revoked, 401)):
        for token in tokens:
            status, *_ = ask(address, known.ports[service], token)
            if status != expected:
                yield f"{service}: answers {status}, not {expected}, to token {token[:14]}"


def ask(address: str, port: int, token: str) -> tuple[int, int | None, int | None]:
    """Ask a service once: the status, and which revision with which code has answered."""
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request("GET", "/", headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            return response.status, None, None
        return 200, int(json.loads(body)["revision"]), int(response.headers["X-Code"])
    except (OSError, http.client.HTTPException):
        return 0, None, None
    finally:
        connection.close()
